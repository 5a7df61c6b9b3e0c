"""The webhook's receiver as an HTTP server: where it may be, and what it answers. Follows no redirect, and keeps nothing of an answer.

A name is resolved for every request, and the request goes to the very address that was looked at: a name that comes to stand for an inner
address (DNS rebinding) leads nowhere. Source: OWASP, Server-Side Request Forgery Prevention Cheat Sheet.
"""

import asyncio
import email.utils
import ipaddress
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import httpx
from msgspec import Struct

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]

# What is read of an answer, so that its connection can be used again. An answer that is longer, or slow, costs its connection.
_MAX_ANSWER_BYTES: Final = 16 * 1024
_ANSWER_S: Final = 1.0
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
# Of a name with several addresses, one that is dead leaves time for the next.
_CONNECT_S: Final = 5.0


class Answer(Struct, frozen=True):
    """What became of a delivery. `failure` is why it must be tried again, in words that reveal no address; None once it is accepted.

    `retry_after_s`: when the receiver wants to be asked again, where it says so.
    """

    failure: str | None = None
    retry_after_s: float | None = None
    is_gone: bool = False


class Receiver:
    """One URL. Its name may stand for public addresses, and for those in `networks`; an address in the URL itself is taken as it is."""

    def __init__(
        self, http: httpx.AsyncClient, url: str, *, networks: Sequence[Network], timeout_s: float, resolve: Resolve
    ) -> None:
        self._http = http
        self._url = httpx.URL(url)
        self._networks = networks
        self._timeout_s = timeout_s
        self._resolve = resolve

    async def post(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Deliver it, within the time limit; whatever fails is told, not raised."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._post(body, headers)
        except TimeoutError:
            return Answer(f"no answer within {self._timeout_s:g} s")
        except (httpx.HTTPError, OSError) as error:
            return Answer(f"failed: {type(error).__name__}")

    async def _post(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        addresses = await self._permitted_addresses()
        if not addresses:
            return Answer("its name stands for an inner address, in none of the permitted networks")
        for address in addresses[:-1]:
            # One that cannot be reached at all has not seen the delivery.
            with suppress(httpx.ConnectError, httpx.ConnectTimeout):
                return await self._post_to(address, body, headers)
        return await self._post_to(addresses[-1], body, headers)

    async def _permitted_addresses(self) -> Sequence[Address]:
        host = self._url.host
        with suppress(ValueError):
            return [ipaddress.ip_address(host)]
        port = self._url.port or (443 if self._url.scheme == "https" else 80)
        return [address for address in await self._resolve(host, port) if self._is_permitted(address)]

    def _is_permitted(self, address: Address) -> bool:
        end = _end_of_tunnel(address)
        return (end.is_global and not end.is_multicast) or any(end in network for network in self._networks)

    async def _post_to(self, address: Address, body: bytes, headers: Mapping[str, str]) -> Answer:
        # The certificate and the host are those of the name; only the way there is by the address.
        request = self._http.build_request(
            "POST",
            self._url.copy_with(host=str(address)),
            content=body,
            headers={**headers, "host": self._url.netloc.decode(), "accept-encoding": "identity"},
            extensions={"sni_hostname": self._url.host},
        )
        response = await self._http.send(request, stream=True)
        try:
            with suppress(TimeoutError, httpx.HTTPError):
                async with asyncio.timeout(_ANSWER_S):
                    await _read_a_little(response)
        finally:
            await response.aclose()
        return _answer(response)


def _end_of_tunnel(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, where it does. Source: RFC 4291, 2.5.5.2; RFC 3056; RFC 6052."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    translated = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF) if address in _NAT64 else None
    return address.ipv4_mapped or address.sixtofour or translated or address


async def _read_a_little(response: httpx.Response) -> None:
    num_bytes = 0
    async for chunk in response.aiter_raw():
        num_bytes += len(chunk)
        if num_bytes > _MAX_ANSWER_BYTES:
            return


def _answer(response: httpx.Response) -> Answer:
    if response.is_success:
        return Answer()
    return Answer(
        f"answered {response.status_code}",
        retry_after_s=_retry_after_s(response.headers.get("retry-after", "")),
        is_gone=response.status_code == httpx.codes.GONE,
    )


def _retry_after_s(value: str) -> float | None:
    """Seconds from now, of either form. Source: RFC 9110, 10.2.3."""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


async def addresses_of(host: str, port: int) -> Sequence[Address]:
    """What the name stands for now; OSError where it stands for nothing."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # An IPv6 address of a link has its interface behind a percent sign.
    return list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))


@asynccontextmanager
async def open_receiver(
    url: str,
    *,
    networks: Sequence[Network] = (),
    timeout_s: float = 15.0,
    max_at_once: int = 8,
    resolve: Resolve = addresses_of,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Receiver]:
    """The receiver at that URL, its connections closed at the end of the block. `tls`: whom to trust, if not the system's authorities."""
    async with httpx.AsyncClient(
        follow_redirects=False,
        timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S)),
        limits=httpx.Limits(max_connections=max_at_once, max_keepalive_connections=max_at_once, keepalive_expiry=30.0),
        verify=tls or ssl.create_default_context(),
        # No proxy of the environment's: it would resolve the name again.
        trust_env=False,
    ) as http:
        yield Receiver(http, url, networks=networks, timeout_s=timeout_s, resolve=resolve)
