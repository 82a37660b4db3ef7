"""A coordinator that has forgotten: restored from a backup, or without Flower's database. Nobody is stuck for that."""

from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from tests.flower.helpers import FACTS
from tinylora.errors import NetworkError, RefusedError
from tinylora.flower.asking import Asking
from tinylora.flower.compat.fleet import PullMessagesRequest
from tinylora.flower.compat.link import Status
from tinylora.flower.compat.wire import Node
from tinylora.flower.link import create_link
from tinylora.flower.receipts import ReceiptBook, read_receipts
from tinylora.protocol.documents import Receipt

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of alembic and pathspec, about flwr's use


def asking(renew: Any) -> Asking:
    return Asking("https://c", patience_s=5.0, stop=Event(), is_over=Event(), renew=renew)


def only_node(node_id: int, asked: list[int]) -> Any:
    """Flower, which answers to the node that it knows by this key, and to no other number."""

    def rpc(request: PullMessagesRequest) -> str:
        asked.append(request.node.node_id)
        if request.node.node_id != node_id:
            raise httpx.HTTPStatusError("", request=httpx.Request("POST", "https://c"), response=httpx.Response(401))
        return "answer"

    return rpc


def test_a_question_is_asked_again_as_the_node_that_we_are_now() -> None:
    asked: list[int] = []
    request = PullMessagesRequest(node=Node(node_id=1))
    assert asking(lambda: 2)(only_node(2, asked), request) == "answer" and asked == [1, 2]


def test_why_nobody_lets_us_in_again_is_told() -> None:
    def renew() -> int:
        raise RefusedError("a new worker needs a join token")

    with pytest.raises(RefusedError, match="needs a join token"):
        asking(renew)(only_node(2, []), PullMessagesRequest(node=Node(node_id=1)))

    def away() -> int:
        raise NetworkError("nobody answers")

    with pytest.raises(RefusedError, match="does not accept this worker's signature"):
        asking(away)(only_node(2, []), PullMessagesRequest(node=Node(node_id=1)))


def test_a_flower_run_that_the_database_never_had_is_over(tmp_path: Path) -> None:
    state = create_link(tmp_path / "link.db").state
    assert state.get_run_status({2**63 + 5})[2**63 + 5].status == Status.FINISHED
    assert state.get_run_status(set()) == {}


def test_the_later_receipt_of_a_number_that_was_given_out_twice_holds(tmp_path: Path) -> None:
    def receipt(event: int) -> Receipt:
        return Receipt(
            run="r", unit_id="u1", worker="w", kind="train", payload_sha256=FACTS.fingerprint, event=event,
            log_sha256=f"{event:064x}",
        )  # fmt: skip

    book = ReceiptBook(tmp_path)
    assert [book.keep([receipt(event)]) for event in (7, 7, 5, 5)] == [1, 0, 1, 0]
    assert [kept.event for kept in read_receipts(tmp_path)] == [7, 5]
    assert ReceiptBook(tmp_path).keep([receipt(5)]) == 0
