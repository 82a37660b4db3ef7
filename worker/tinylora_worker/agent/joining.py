"""The agent's place in a run: whom to ask, by what it is recognised, and being let in."""

from collections.abc import Callable
from dataclasses import dataclass

from tinylora.config import BaseFacts
from tinylora.errors import SettingError
from tinylora.flower.enrolment import NotYetApproved, StateAnswer, Welcome, ask_state, join
from tinylora.flower.identity import Identity
from tinylora.flower.join_token import parse_token
from tinylora.flower.membership import Membership, load_membership, save_membership
from tinylora.flower.meter import Meter, unmetered
from tinylora.flower.reach import Address, Trust
from tinylora_worker.agent.journal import Tell
from tinylora_worker.agent.options import Options


@dataclass
class Door:
    """The coordinator that this worker belongs to, as it is reached from here."""

    options: Options
    identity: Identity
    address: Address
    trust: Trust | None
    """By what it is recognised, where that is known before asking it."""
    meter: Meter = unmetered
    """Told of each byte."""

    @classmethod
    def find(cls, options: Options, identity: Identity, meter: Meter = unmetered) -> "Door":
        """Where it is: as said, or where this home has joined before.

        Raises:
            SettingError: The address or the token makes no sense, or neither is known.
        """
        address, trust = whom(options)
        return cls(options, identity, address, trust, meter)

    def join(self, facts: BaseFacts | None = None) -> Welcome:
        """Be let in, or once more; with the base that was loaded, if one was.

        Raises:
            BaseModelError: The run needs another base.
            NetworkError: Nobody answers.
            RefusedError: The coordinator says no.
        """
        options = self.options
        welcome = join(
            self.address,
            options.token,
            self.identity,
            trust=self.trust,
            name=options.name,
            base=facts,
            meter=self.meter,
        )
        self.trust = welcome.trust
        return welcome

    def wait_in(self, wait: Callable[[float], bool], *, say: Tell, poll_s: float) -> Welcome | None:
        """Join; where the operator wants to approve workers, wait until he has.

        Args:
            wait: Waits so many seconds; returns whether we want to leave, which ends it.
            say: Takes one line for people.
            poll_s: Between two questions.
        """
        is_told = False
        while True:
            try:
                welcome = self.join()
            except NotYetApproved as error:
                if not is_told:
                    say(f"{error}: {self.identity.worker}; waiting")
                is_told = True
            else:
                save_membership(self.options.home, Membership.of(self.address, welcome))
                return welcome
            if wait(poll_s):
                return None

    def ask_state(self) -> StateAnswer:
        """What the run is doing.

        Raises:
            NetworkError: Nobody answers.
        """
        return ask_state(self.address, trust=self.trust, meter=self.meter)


def whom(options: Options) -> tuple[Address, Trust | None]:
    """Where the coordinator is, and by what it is recognised if that is known before asking it.

    Raises:
        SettingError: The address or the token makes no sense, or neither is known.
    """
    kept = load_membership(options.home)
    if options.token:
        pin = parse_token(options.token).pin
        known = kept.trust if kept is not None and kept.pin == pin and kept.ca_pem else None
        return Address.parse(options.url), known
    if kept is None:
        raise SettingError(f"{options.home}: has joined no run yet; join with the token that the operator gave you")
    return Address.parse(options.url or kept.url), kept.trust
