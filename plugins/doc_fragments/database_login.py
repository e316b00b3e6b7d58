# Copyright: Bitflow LMS contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that say how a database server is reached. Their argument specification is login_argspec in module_utils."""

from __future__ import annotations


class ModuleDocFragment:
    """The documentation fragment database_login."""

    DOCUMENTATION = r"""
options:
  engine:
    description:
      - Which clients speak to the server.
      - V(mysql) is for MariaDB and MySQL. Which of the two it is, the server says.
    type: str
    choices: [postgresql, mysql]
    required: true
  login_host:
    description:
      - Host of the server. Without it the server of this host is reached by its socket.
    type: str
  login_port:
    description:
      - Port of the server. Without it the client's own default, 5432 or 3306. For PostgreSQL the port names the socket as well.
    type: int
  login_user:
    description:
      - User of the database server. Without it the name of the user as whom the client runs.
    type: str
  login_password:
    description:
      - Password of O(login_user). Clients read it from memory, so that it stands in no file, argument or environment.
    type: str
  login_unix_socket:
    description:
      - Where the server's socket is. For MariaDB and MySQL the socket itself, for PostgreSQL the directory in which it lies.
      - Not together with O(login_host).
    type: path
  ssl_mode:
    description:
      - What is asked of the connection, from the least to the most. V(prefer) takes TLS where the server offers it, but does not check
        with whom it speaks. V(verify-full) is right for a server that is reached over a network that others use too.
      - It says nothing about sockets, over which nothing is encrypted.
    type: str
    choices: [disable, allow, prefer, require, verify-ca, verify-full]
    default: prefer
  ca_cert:
    description:
      - File with the certificates by which V(verify-ca) and V(verify-full) know the server. O(login_system_user) has to be able to read it.
    type: path
  login_system_user:
    description:
      - User of this host as whom the clients run, such as V(postgres), for a server that knows its users by the socket. The module itself
        has to run as root then.
      - Without it the module's own user.
    type: str
"""
