"""`privtune enroll`: give this device an identity of its own at a cloud."""

from __future__ import annotations

import time
from typing import Annotated

from privtune.device.cli.connection import CloudOptions
from privtune.device.cli.error_report import guarded
from privtune.device.cli.option_groups import grouped
from privtune.device.cli.options import CONNECTION, AsJson, option
from privtune.device.cli.printing import print_result


@guarded
@grouped
def enroll(
    connection: CloudOptions,
    token: Annotated[
        str,
        option(
            "What the cloud's operator got from `privtune-cloud devices token`; it works once.",
            CONNECTION,
            envvar="PRIVTUNE_TOKEN",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Give this device a certificate of its own, with a token from the cloud's operator.

    From then on its runs show the certificate, not the API key, and trust the authority that the token names: no
    --ca-cert is needed. The private key never leaves the home folder. The certificate renews itself, during runs and
    while `privtune agent` waits; a device that was away for longer than it lasts needs another token.

    \b
    Example:
      privtune enroll --cloud https://cloud.example:8080 --token TOKEN
    """
    from privtune.device.link.enrolment import enrol
    from privtune.shared.errors import InvalidInput

    if not connection.cloud:
        raise InvalidInput("Which cloud? Set PRIVTUNE_CLOUD or give --cloud https://host:port.", param="cloud")
    identity, owner = enrol(connection.folder, connection.cloud, token, connection.ca_cert)
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(identity.received + identity.life_s))
    line = f"This device is {identity.device_id} of {owner}, until {until}; it renews itself before that."
    print_result({"device_id": identity.device_id, "owner": owner, "until": until}, line, as_json=as_json)
