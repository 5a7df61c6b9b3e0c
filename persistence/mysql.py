"""aiomysql's connection without its good faith: TLS that is asked for is demanded, no password goes out in clear, no file ever.

Only what a server, or whoever stands between, may talk the client into is decided here; `persistence.database` has all the rest.
"""

from aiomysql import Connection, OperationalError
from pymysql.constants import CLIENT, CR  # type: ignore[import-untyped]

_CLEAR_PASSWORD = "mysql_clear_password"  # noqa: S105


async def open_connection(**arguments: object) -> Connection:
    """An open connection, as `aiomysql.connect` makes it; `OperationalError` 2026 when it would not be a safe one."""
    connection = _SafeConnection(**arguments)
    await connection._connect()
    return connection


class _SafeConnection(Connection):  # type: ignore[misc]
    async def _get_server_information(self) -> None:
        await super()._get_server_information()
        # aiomysql would go on without TLS: whoever stands between need only leave this bit out of the greeting.
        if self._ssl_context and not self.server_capabilities & CLIENT.SSL:
            raise OperationalError(CR.CR_SSL_CONNECTION_ERROR, "the server offers no TLS")
        self._refuse_clear_password(self._client_auth_plugin or self._server_auth_plugin)

    async def _process_auth(self, plugin_name: bytes, auth_packet: object) -> object:
        self._refuse_clear_password(plugin_name.decode("latin1"))
        return await super()._process_auth(plugin_name, auth_packet)

    def _refuse_clear_password(self, plugin: str) -> None:
        if plugin == _CLEAR_PASSWORD and not (self._ssl_context or self._secure):
            raise OperationalError(CR.CR_SSL_CONNECTION_ERROR, "the server asks for the password without TLS")

    async def _read_query_result(self, unbuffered: bool = False) -> None:
        try:
            await super()._read_query_result(unbuffered)
        except RuntimeError as error:
            # So aiomysql refuses a server that answers a statement by asking for a file. What that one says next answers nothing.
            self.close()
            raise OperationalError(CR.CR_SERVER_LOST, "the server asked for a file") from error
