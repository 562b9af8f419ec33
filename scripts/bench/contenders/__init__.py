"""What is measured side by side: this gateway, nginx + Lua, plain proxies, and other products."""
