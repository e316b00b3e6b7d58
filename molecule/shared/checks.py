"""What the tests of several roles ask of a host, in the words of an operator."""

from __future__ import annotations

from typing import Any


def service_is_up(host: Any, name: str) -> bool:
    """Tell whether the unit runs now and will run after a reboot."""
    service = host.service(name)
    return bool(service.is_running and service.is_enabled)


def listening_addresses(host: Any, port: int) -> set[str]:
    """Return the addresses on which something accepts TCP connections at the port."""
    lines = host.check_output("ss --tcp --listening --numeric --no-header 'sport = :%s'", str(port)).splitlines()
    return {line.split()[3].rsplit(":", 1)[0] for line in lines}


def access_to(host: Any, path: str) -> tuple[str, str, str]:
    """Return a path's owner, group and mode, the mode in octal digits."""
    file = host.file(path)
    return file.user, file.group, f"{file.mode:04o}"
