"""nginx + Lua + Redis: the same script call with the same words, and the same forward, in the least that can do it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.bench.bed import Bed, Endpoint
from scripts.bench.contenders.gateway import DOMAIN, Callers
from scripts.bench.contenders.recorded_calls import Recorded, Recordings
from scripts.bench.load import Request
from scripts.bench.processes import HOST, free_port, running

MODULES = Path("/usr/lib/nginx/modules")
_PLACEHOLDER = re.compile(r"\{(id|digest|subdomain|admitted)\}")

_CONFIG = """
load_module {modules}/ndk_http_module.so;
load_module {modules}/ngx_http_lua_module.so;
daemon off; master_process off; worker_processes 1; error_log {folder}/{name}-errors.log error; pid {folder}/{name}.pid;
events {{ worker_connections 16384; }}
http {{
  access_log off; keepalive_timeout 3600s; keepalive_requests 1000000000; client_body_temp_path {folder}/{name}-bodies;
  proxy_temp_path {folder}/{name}-replies; client_max_body_size 64m; client_body_buffer_size 64k;
  lua_package_path "{folder}/?.lua;/usr/share/lua/5.1/?.lua;;";
  init_by_lua_block {{ require "{module}" }}
  upstream target {{ server {host}:{upstream_port}; keepalive 256; keepalive_requests 1000000000; keepalive_timeout 3600s; }}
  server {{
    listen {port} backlog=8192;
    location / {{
      access_by_lua_block {{ require("{module}").admit() }}
      {log}
      proxy_pass http://target; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Authorization "";
      proxy_set_header X-Request-Id $request_id; proxy_buffering {buffering};
    }}
  }}
}}
"""

# SHA256 is that of libcrypto, which nginx itself is linked with
_LUA = """
local ffi = require "ffi"
local redis = require "nginx.redis"
ffi.cdef "unsigned char *SHA256(const unsigned char *d, size_t n, unsigned char *md);"
local digest_bytes = ffi.new("unsigned char[32]")
local HEX = {{}}
for value = 0, 255 do HEX[value] = string.format("%02x", value) end
local hex = {{}}
local function digest_of(secret)
  ffi.C.SHA256(secret, #secret, digest_bytes)
  for index = 0, 31 do hex[index + 1] = HEX[digest_bytes[index]] end
  return table.concat(hex, "", 1, 32)
end

local function connected()
  local store = redis:new()
  store:set_timeout(1000)
  assert(store:connect("{host}", {redis_port}))
  return store
end

local module = {{}}

function module.admit()
  local var = ngx.var
  local subdomain = var.host:match("^([^.]+)%.{domain}$")
  local secret = (var.http_authorization or ""):match("^Bearer (%S+)$")
  if not subdomain then return ngx.exit(404) end
  if not secret then return ngx.exit(401) end
  local digest, id = digest_of(secret), var.request_id
  local store = connected()
  local reply, failure = store:evalsha({admit})
  if not reply then
    ngx.log(ngx.ERR, failure)
    return ngx.exit(503)
  end
  store:set_keepalive(60000, 256)
  if reply[1] == "admitted" then
    ngx.ctx.id, ngx.ctx.admitted, ngx.ctx.subdomain = id, reply[2], subdomain
    ngx.header["X-RateLimit-Remaining-Requests"] = reply[5]
    return
  end
  return ngx.exit(reply[1] == "limited" and 429 or 401)
end

local waiting, count, flushing = {{}}, 0, false

local function flush()
  while count > 0 do
    local batch, size = waiting, count
    waiting, count = {{}}, 0
    local store = connected()
    store:init_pipeline(size)
    for index = 1, size do
      local subdomain, id, admitted = unpack(batch[index])
      store:evalsha({settle})
    end
    assert(store:commit_pipeline())
    store:set_keepalive(60000, 256)
  end
  flushing = false
end

-- as the gateway does: all that end while a call is under way travel together in the next
function module.settle()
  local ctx = ngx.ctx
  if not ctx.id then return end
  count = count + 1
  waiting[count] = {{ ctx.subdomain, ctx.id, tostring(ctx.admitted) }}
  if not flushing then
    flushing = true
    ngx.timer.at(0, flush)
  end
end

return module
"""


def lua_arguments(call: Recorded) -> str:
    """The words after EVALSHA as Lua expressions; what differs between requests are variables of the same names."""
    return ", ".join(_expression(word) for word in call.words[1:])


def _expression(word: str) -> str:
    parts = [part if index % 2 else f"[==[{part}]==]" for index, part in enumerate(_PLACEHOLDER.split(word)) if part]
    return " .. ".join(parts) or '""'


@dataclass(frozen=True)
class NginxLua:
    """``settles``: also what the gateway does after the reply, in a timer."""

    calls: Recordings
    callers: Callers
    settles: bool = False

    @property
    def name(self) -> str:
        return "nginx-lua+settle" if self.settles else "nginx-lua"

    @contextlib.contextmanager
    def start(self, bed: Bed, *, streams: bool = False) -> Iterator[Endpoint]:
        port = free_port()
        module = f"bench_{port}"
        settle = self.calls.of(streams).settle if self.settles else None
        lua = _LUA.format(
            host=HOST,
            redis_port=bed.redis_port,
            domain=DOMAIN.replace(".", "%."),
            admit=lua_arguments(self.calls.of(streams).admit),
            settle=lua_arguments(settle) if settle else '""',
        )
        (bed.folder / f"{module}.lua").write_text(lua, encoding="utf-8")
        config = bed.folder / f"{module}.conf"
        config.write_text(
            _CONFIG.format(
                modules=MODULES,
                folder=bed.folder,
                name=module,
                module=module,
                host=HOST,
                port=port,
                upstream_port=bed.target_port(streams),
                buffering="off" if streams else "on",
                log=f'log_by_lua_block {{ require("{module}").settle() }}' if settle else "",
            ),
            encoding="utf-8",
        )
        command: Sequence[str | Path] = ["nginx", "-c", config]
        with running(self.name, command, folder=bed.folder, cores=bed.cores.proxy, port=port) as program:
            yield Endpoint(program, Request(port, headers=self.callers.of(streams).headers))
