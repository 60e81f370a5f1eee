"""Whether the movers of two machines can be joined: tried as a run does it, but for the bytes."""

from __future__ import annotations

from vrepl.app.composition import mover_settings, stream_authority
from vrepl.app.machines import launcher_of, machine_of, proxy_machine
from vrepl.config import LoadedConfig
from vrepl.errors import MoverError
from vrepl.movers.pair import EndPlace, who_listens
from vrepl.movers.process import MoverProcess, Spawner
from vrepl.stream.end import StreamEnd


def check_stream(loaded: LoadedConfig, source: str | None, target: str | None) -> str | None:
    """Let a mover of one machine listen, and connect to it from the other; None: this machine.

    Returns where it listened, or None where no network is between the two. Raises VreplErrors.
    """
    machines = [proxy_machine(loaded, name) for name in (source, target)]
    if all(machine.ssh is None for machine in machines):
        return None
    places = [EndPlace(mover_settings(loaded, machine), launcher_of(machine)) for machine in machines]
    listening, connecting = who_listens(places[0], places[1])
    asker = machine_of(machines[0 if connecting is places[0] else 1])
    launcher, authority, spawner = listening.launcher, stream_authority(), Spawner()
    certificate, key = authority.certify("check")
    first, last = launcher.ports
    end = StreamEnd("nobody", certificate, key, authority.pem, port=first, last_port=last, bind=launcher.bind)
    try:
        mover = MoverProcess(listening.settings, spawner, launcher=launcher, stream=end)
        try:
            closed = asker.closed_ports([launcher.address], mover.port)
        finally:
            mover.close()
    finally:
        spawner.end()
    for address, why in closed.items():
        raise MoverError(
            f"{connecting.called} cannot connect to {address}, where movers of {listening.called} listen: {why}",
            hint=f"does `address` of {listening.called} lead there, and do all firewalls between let its ports through "
            "(`ports`)? listen = false turns the direction round",
        )
    return f"{launcher.address}, port {mover.port}"
