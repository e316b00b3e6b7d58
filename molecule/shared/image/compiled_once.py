"""Compile what Ansible sends once, and not with every task.

Ansible sends its library in an archive with each task, from which Python compiles it anew: that is most of what a task costs a host. This
belongs to the test hosts, where thousands of tasks run, and to no role.
"""

# ruff: noqa: PTH104, PTH118, PTH119, PTH123, S302
# pathlib is slow to import. The folder is root's alone.

import os
import sys
import zipimport

FOLDER = "/var/cache/compiled-once"
compile_source = zipimport._compile_source


def compiled(path, source):
    """Return the code of a module in an archive: from the folder, if the same source was compiled before."""
    if "ansible" not in path:
        return compile_source(path, source)
    import marshal
    from _blake2 import blake2b

    file = os.path.join(FOLDER, blake2b(f"{sys.hexversion} {os.path.basename(path)} ".encode() + source, digest_size=16).hexdigest())
    try:
        with open(file, "rb") as stream:
            return marshal.load(stream)
    except (OSError, EOFError, ValueError):
        pass
    code = compile_source(path, source)
    try:
        with open(f"{file}.{os.getpid()}", "wb") as stream:
            marshal.dump(code, stream)
        os.rename(f"{file}.{os.getpid()}", file)
    except OSError:
        pass
    return code


zipimport._compile_source = compiled
