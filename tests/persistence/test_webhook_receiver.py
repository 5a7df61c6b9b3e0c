"""A delivery goes where the operator said, and nowhere else: not to an inner address behind a name, and not where a redirect points."""

import asyncio
import datetime
import email.utils
import ipaddress
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from persistence.webhook_receiver import Address, Answer, addresses_of, open_receiver
from tests.persistence.receiver import FakeReceiver, Received, answering, fake_receiver, hanging

NAME = "hooks.test"
LOOPBACK = ipaddress.ip_address("127.0.0.1")
HEADERS = {"content-type": "application/json", "webhook-id": "evt_1"}


@pytest.fixture
async def receiver() -> AsyncIterator[FakeReceiver]:
    """One that takes everything, until told otherwise."""
    async with fake_receiver() as receiver:
        yield receiver


def standing_for(*addresses: str) -> Callable[[str, int], Awaitable[Sequence[Address]]]:
    """What a name server says."""

    async def resolve(name: str, port: int) -> Sequence[Address]:
        assert name == NAME
        return [ipaddress.ip_address(address) for address in addresses]

    return resolve


async def post(url: str, **options: Any) -> Answer:
    async with open_receiver(url, **options) as opened:
        return await opened.post(b"{}", HEADERS)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fd00:ec2::254",
        "::ffff:10.1.2.3",
        "::ffff:127.0.0.1",
        "2002:a9fe:a9fe::1",
        "64:ff9b::a9fe:a9fe",
        "ff02::1",
    ],
)
async def test_a_name_that_stands_for_an_inner_address_leads_nowhere(receiver: FakeReceiver, address: str) -> None:
    answer = await post(f"http://{NAME}:{receiver.port}/", resolve=standing_for(address))

    assert answer.failure == "its name stands for an inner address, in none of the permitted networks"
    assert receiver.num_connections == 0


async def test_a_name_may_stand_for_a_network_that_the_operator_named(receiver: FakeReceiver) -> None:
    networks = [ipaddress.ip_network("127.0.0.0/8")]

    answer = await post(
        f"http://{NAME}:{receiver.port}/a?b=c", resolve=standing_for("10.0.0.1", "127.0.0.1"), networks=networks
    )

    assert answer == Answer()
    assert receiver.received[0].target == "/a?b=c"
    assert receiver.received[0].headers["host"] == f"{NAME}:{receiver.port}"


async def test_a_name_that_changes_its_address_between_two_deliveries_is_looked_at_again(
    receiver: FakeReceiver,
) -> None:
    """Rebinding: the address that is checked is the one that is connected to, each time."""
    addresses = [[LOOPBACK], [ipaddress.ip_address("169.254.169.254")]]

    async def resolve(name: str, port: int) -> Sequence[Address]:
        return addresses.pop(0)

    options: Any = {"resolve": resolve, "networks": [ipaddress.ip_network("127.0.0.1/32")]}
    async with open_receiver(f"http://{NAME}:{receiver.port}/", **options) as opened:
        first = await opened.post(b"{}", HEADERS)
        second = await opened.post(b"{}", HEADERS)

    assert first.failure is None
    assert second.failure is not None
    assert len(receiver.received) == 1


async def test_a_name_with_a_dead_address_is_reached_by_the_next(receiver: FakeReceiver) -> None:
    networks = [ipaddress.ip_network("127.0.0.0/8")]

    answer = await post(
        f"http://{NAME}:{receiver.port}/", resolve=standing_for("127.0.0.2", "127.0.0.1"), networks=networks
    )

    assert answer == Answer()


async def test_an_address_in_the_url_is_named_by_the_operator(receiver: FakeReceiver) -> None:
    assert await post(receiver.url) == Answer()


async def test_a_name_that_stands_for_nothing_is_a_failure() -> None:
    assert (await post("http://nobody.invalid/")).failure == "failed: gaierror"


async def test_the_systems_own_answer_about_a_name_is_asked() -> None:
    assert LOOPBACK in await addresses_of("localhost", 80)


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Elsewhere", "308 Elsewhere"])
async def test_a_redirect_is_not_followed(receiver: FakeReceiver, status: str) -> None:
    async with fake_receiver() as other:
        receiver.behave = [answering(status, f"location: {other.url}")]

        answer = await post(receiver.url)

        assert answer.failure == f"answered {status[:3]}"
        assert other.num_connections == 0


async def test_a_receiver_that_never_ends_its_answer_is_not_listened_to() -> None:
    """What it said of the delivery counts: it has it."""

    async def drip(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 Fine\r\ncontent-length: 999999999\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x" * 4096)
            await writer.drain()

    async with fake_receiver() as receiver:
        receiver.behave = [drip]

        assert await post(receiver.url) == Answer()


async def test_a_receiver_that_hangs_is_left_after_a_time(receiver: FakeReceiver) -> None:
    receiver.behave = [hanging]

    assert (await post(receiver.url, timeout_s=0.2)).failure == "no answer within 0.2 s"


async def test_a_connection_is_used_again(receiver: FakeReceiver) -> None:
    async with open_receiver(receiver.url) as opened:
        for _ in range(3):
            await opened.post(b"{}", HEADERS)

    assert (len(receiver.received), receiver.num_connections) == (3, 1)


@pytest.mark.parametrize(
    ("value", "expected_s"),
    [("120", 120.0), ("", None), ("soon", None), ("-5", None), ("٣", None), ("9" * 400, 999_999_999.0), ("Thu", None)],
)
async def test_when_to_come_again_is_read(receiver: FakeReceiver, value: str, expected_s: float | None) -> None:
    receiver.behave = [answering("503 Later", f"retry-after: {value}")]

    assert (await post(receiver.url)).retry_after_s == expected_s


async def test_when_to_come_again_may_be_a_date(receiver: FakeReceiver) -> None:
    receiver.behave = [answering("503 Later", f"retry-after: {email.utils.formatdate(time.time() + 90, usegmt=True)}")]

    answer = await post(receiver.url)

    assert answer.retry_after_s is not None
    assert 0 < answer.retry_after_s <= 90


def certificates(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context for `NAME`, and that of a client who trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "certificate.pem"
    path.write_bytes(certificate.public_bytes(pem) + private)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    return server, ssl.create_default_context(cafile=path)


async def test_a_certificate_is_checked_against_the_name_though_the_way_is_by_the_address(tmp_path: Path) -> None:
    server, client = certificates(tmp_path)
    options: Any = {"networks": [ipaddress.ip_network("127.0.0.0/8")]}
    async with fake_receiver(server) as receiver:
        url = f"https://{NAME}:{receiver.port}/"
        resolve = standing_for("127.0.0.1")

        trusted = await post(url, resolve=resolve, tls=client, **options)
        untrusted = await post(url, resolve=resolve, **options)
        misnamed = await post(receiver.url.replace("http:", "https:"), tls=client)

    assert trusted == Answer()
    assert untrusted.failure == misnamed.failure == "failed: ConnectError"
    assert len(receiver.received) == 1
