"""The command line of Flueman with one more route, `/probe`: what runs inside a node, which a server in production tells nobody."""

import asyncio
import sys
from collections.abc import Callable, Sequence
from unittest import mock

from msgspec import Struct
from msgspec.json import decode, encode
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server import __main__, app
from server.services import services_of
from server.settings import Settings
from tests.end_to_end.processes import FluemanProcess, get


class Probe(Struct, frozen=True):
    """A node's inside: all asyncio tasks, the one that looks included; answers that the engine is giving; live sessions."""

    num_tasks: int
    num_answers: int
    num_sessions: int


class ProbedProcess(FluemanProcess):
    """A node that can be looked into."""

    def probe(self) -> Probe:
        """What runs in it now."""
        status, body = get(self.port, "/probe")
        assert status == 200, body
        return decode(body, type=Probe)

    def _command_line(self, port: int) -> Sequence[str]:
        line = list(super()._command_line(port))
        line[line.index("server")] = "tests.benchmarks.probed"
        return line


def _with_probe(create_app: Callable[[Settings], Starlette]) -> Callable[[Settings], Starlette]:
    def create(settings: Settings) -> Starlette:
        application = create_app(settings)
        application.router.routes.insert(0, Route("/probe", _tell))
        return application

    return create


async def _tell(request: Request) -> Response:
    node = services_of(request).node
    probe = Probe(len(asyncio.all_tasks()), node.engine.capacity().running, node.num_sessions)
    return Response(encode(probe), media_type="application/json")


if __name__ == "__main__":
    with mock.patch.object(app, "create_app", _with_probe(app.create_app)):
        sys.exit(__main__.main())
