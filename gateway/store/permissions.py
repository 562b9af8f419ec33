"""What the gateway's own Redis user must be allowed, and keys it must not reach.

``docs/redis.acl`` gives exactly this. A test derives it from the scripts, from the code of the store and from what connections
say, so a new command comes here and into that file, or it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.store.keyspace import PREFIX

KEY_PATTERN = f"{PREFIX}*"

_KEY = f"{PREFIX}{{doctor}}:probe"

CONNECTING: Mapping[str, tuple[str, ...]] = {
    "client|setname": ("CLIENT", "SETNAME", "gateway"),
    "eval": ("EVAL", "return {}", "1", _KEY),
    "evalsha": ("EVALSHA", "0" * 40, "1", _KEY),
    "info": ("INFO", "server"),
    "ping": ("PING",),
    "script|load": ("SCRIPT", "LOAD", "return {}"),
    "select": ("SELECT", "0"),
}
"""What connections and the runner of scripts send to every server, each with a whole command to ask about."""

CLUSTER: Mapping[str, tuple[str, ...]] = {
    "asking": ("ASKING",),
    "cluster|slots": ("CLUSTER", "SLOTS"),
    "command": ("COMMAND",),
}
"""What a client of a cluster sends besides."""

EXAMINING: Mapping[str, tuple[str, ...]] = {
    "acl|dryrun": ("ACL", "DRYRUN", "gateway", "PING"),
    "acl|whoami": ("ACL", "WHOAMI"),
}
"""What only `gateway doctor` sends: who it is, and what it may do. Neither tells a secret."""

DATA: Mapping[str, tuple[str, ...]] = {
    "del": ("DEL", _KEY),
    "exists": ("EXISTS", _KEY),
    "get": ("GET", _KEY),
    "hdel": ("HDEL", _KEY, "field"),
    "hexists": ("HEXISTS", _KEY, "field"),
    "hget": ("HGET", _KEY, "field"),
    "hgetall": ("HGETALL", _KEY),
    "hincrby": ("HINCRBY", _KEY, "field", "1"),
    "hlen": ("HLEN", _KEY),
    "hmget": ("HMGET", _KEY, "field"),
    "hscan": ("HSCAN", _KEY, "0"),
    "hset": ("HSET", _KEY, "field", "1"),
    "hvals": ("HVALS", _KEY),
    "lindex": ("LINDEX", _KEY, "0"),
    "llen": ("LLEN", _KEY),
    "lpush": ("LPUSH", _KEY, "1"),
    "lrange": ("LRANGE", _KEY, "0", "0"),
    "lrem": ("LREM", _KEY, "1", "1"),
    "ltrim": ("LTRIM", _KEY, "0", "0"),
    "mget": ("MGET", _KEY),
    "pexpire": ("PEXPIRE", _KEY, "1"),
    "pttl": ("PTTL", _KEY),
    "set": ("SET", _KEY, "1"),
    "time": ("TIME",),
    "unlink": ("UNLINK", _KEY),
    "xadd": ("XADD", _KEY, "*", "field", "1"),
    "xdel": ("XDEL", _KEY, "0-1"),
    "xlen": ("XLEN", _KEY),
    "xrange": ("XRANGE", _KEY, "-", "+"),
    "xtrim": ("XTRIM", _KEY, "MAXLEN", "0"),
    "zadd": ("ZADD", _KEY, "1", "member"),
    "zcount": ("ZCOUNT", _KEY, "0", "1"),
    "zrangebylex": ("ZRANGEBYLEX", _KEY, "-", "+"),
    "zrangebyscore": ("ZRANGEBYSCORE", _KEY, "0", "1"),
    "zrem": ("ZREM", _KEY, "member"),
    "zremrangebyscore": ("ZREMRANGEBYSCORE", _KEY, "0", "1"),
    "zscan": ("ZSCAN", _KEY, "0"),
}
"""What the scripts call and the stores send."""

NEEDED: Mapping[str, tuple[str, ...]] = {**CONNECTING, **CLUSTER, **EXAMINING, **DATA}

SUPERFLUOUS: Mapping[str, tuple[str, ...]] = {
    "keys of others": ("GET", "another:key"),
    "acl|setuser": ("ACL", "SETUSER", "gateway"),
    "client|kill": ("CLIENT", "KILL", "ID", "1"),
    "config|get": ("CONFIG", "GET", "*"),
    "config|set": ("CONFIG", "SET", "appendonly", "no"),
    "debug": ("DEBUG", "SLEEP", "1"),
    "flushall": ("FLUSHALL",),
    "keys": ("KEYS", "*"),
    "monitor": ("MONITOR",),
    "publish": ("PUBLISH", "channel", "message"),
    "replicaof": ("REPLICAOF", "NO", "ONE"),
    "save": ("SAVE",),
    "script|flush": ("SCRIPT", "FLUSH"),
    "shutdown": ("SHUTDOWN",),
}
"""What does most harm in the wrong hands and is never needed; asked about, never sent."""
