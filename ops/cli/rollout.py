"""``headrace rollout``: which model versions answer, how the trial stands, and the transitions that a person may ask for."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ops.cli.arguments import number
from ops.cli.output import print_json, say, tell
from schemas.counting import counted
from schemas.settings import Settings

if TYPE_CHECKING:
    from ray_apps.rollout.evidence import Evidence
    from schemas.rollout import RolloutState

EVIDENCE_TIMEOUT_S = 5.0
"""How long ``show`` reads events; a long trial may have more than it reads in that time, and ``show`` says so."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Define the command and its actions."""
    parser = subparsers.add_parser("rollout", help="show and change which models answer")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add(actions, common, "show", "the state in force, the evidence so far, and what the next step waits for", show)
    by_hand = _add(actions, common, "set", "set versions and shares by hand, and hold them (see hold)", set_versions)
    by_hand.add_argument("--champion", required=True, metavar="VERSION", help="model version that answers by default")
    by_hand.add_argument("--challenger", metavar="VERSION", help="model version that gets a share")
    by_hand.add_argument("--share", type=number, metavar="0..1", help="share of sticky keys for the challenger; 0: shadow copies only")
    shadow = _add(actions, common, "shadow", "put a model on trial: shadow first, then the loop decides; ends a hold", start_trial)
    shadow.add_argument("version", metavar="VERSION", help="number, or latest")
    held = "a person decides from now on: the loop withdraws a challenger that fails, but starts no trial and promotes nothing"
    _add(actions, common, "hold", held, hold).add_argument("--reason", default="a person decides from now on", help="why; is recorded")
    freed = "the loop decides again, also about versions and shares that were set by hand"
    _add(actions, common, "release", freed, release).add_argument("--reason", default="the loop decides again", help="why; is recorded")
    _add(actions, common, "promote", "make the challenger champion now", promote)
    _add(actions, common, "abort", "withdraw the challenger", abort).add_argument("--reason", default="no reason was given", help="why; is recorded")


def _add(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
    common: argparse.ArgumentParser,
    name: str,
    text: str,
    run: Callable[[argparse.Namespace, Settings], int],
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, parents=[common], help=text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def show(args: argparse.Namespace, settings: Settings) -> int:
    """Phase, versions, shares, who decides, evidence, and what is missing."""
    from ray_apps.loop.disk import Disk
    from ray_apps.rollout.log import RolloutLog
    from ray_apps.rollout.policy import missing
    from schemas.rollout import Phase

    state = RolloutLog(Path(settings.root)).latest()
    if state is None:
        if args.json:
            print_json({"state": None, "evidence": None, "missing": ["a model"]})
        else:
            say(f"nothing is served under {settings.root} yet: the first registered model becomes champion")
        return 0
    evidence = None if state.phase is Phase.IDLE or not settings.kafka.bootstrap_servers else _evidence(state, settings)
    waits_for = missing(state, evidence, settings.rollout) if evidence else []
    given_up = Disk(Path(settings.root)).given_up()
    training = given_up.reason if given_up else None
    if args.json:
        shown = {"state": state.model_dump(mode="json"), "decides": _who_decides(state), "missing": waits_for, "training_held": training}
        print_json(shown | {"evidence": evidence.summary() if evidence else None})
    else:
        tell("\n".join([*describe(state), *_describe_evidence(evidence, waits_for), *([f"training: {training}"] if training else [])]))
    return 0


def _who_decides(state: "RolloutState") -> str:
    return "a person" if state.person_decides else "the loop"


def describe(state: "RolloutState") -> list[str]:
    """A state in a few lines."""
    from schemas.rollout import Phase

    served = f"model {state.champion} is champion" if state.champion else "no model is served"
    if state.phase is Phase.SHADOW:
        served += f", model {state.challenger} gets copies of {state.shadow_fraction:.0%} of the requests (shadow)"
    if state.phase is Phase.CANARY:
        served += f", model {state.challenger} answers {state.canary_fraction:.0%} of the sticky keys (canary)"
    who = "the loop" if state.automatic else "a person"
    held = (
        "a person decides what comes next: the loop withdraws a challenger that fails, starts no trial and promotes nothing until `rollout release`"
    )
    return [
        served,
        f"since {state.created_at:%Y-%m-%d %H:%M:%S} UTC, rollout {state.number}, {state.decision.value} by {who}: {state.reason}",
        held if state.person_decides else "the loop decides what comes next; `rollout hold` stops that",
    ]


def _describe_evidence(evidence: "Evidence | None", waits_for: list[str]) -> list[str]:
    if evidence is None:
        return []
    lines = []
    for name, tally in (("champion", evidence.champion), ("challenger", evidence.challenger)):
        median = tally.median_s_per_token()
        speed = "" if median is None else f", {median * 1e3:.1f} ms per token (median)"
        failures = f"{counted(tally.errors, 'error')}, {counted(tally.refusals, 'refusal')}, {tally.cancellations:,} given up by the client"
        lines.append(f"{name}: {counted(tally.answers, 'answer')} to {counted(len(tally.users), 'user')}, {failures}{speed}")
    return lines + [f"waits for {sentence}" for sentence in waits_for]


def _evidence(state: "RolloutState", settings: Settings) -> "Evidence":
    """Read from the broker what happened since the state was published; without a broker, the tallies are empty."""
    from ray_apps.loop.evaluations import Evaluations
    from ray_apps.rollout.controller import read_tally
    from ray_apps.rollout.tally import TrialTally
    from schemas.errors import BrokerError, SourceError

    try:
        tally = read_tally(state, settings, EVIDENCE_TIMEOUT_S)
    except (BrokerError, SourceError) as error:
        say(f"headrace rollout: the traffic of the trial could not be read: {error}")
        tally = TrialTally(state)
    validation = Evaluations(Path(settings.root), settings.training.evaluate_rows).validation(state)
    return tally.evidence(validation)


def set_versions(args: argparse.Namespace, settings: Settings) -> int:
    """What a person says."""
    from ray_apps.models.registry import Registry
    from ray_apps.rollout import policy
    from ray_apps.rollout.controller import by_hand, new_salt

    registry = Registry(Path(settings.root))
    champion = registry.resolve(args.champion)
    challenger = registry.resolve(args.challenger) if args.challenger else None
    _check(settings, champion, challenger)

    def change(state: "RolloutState | None") -> "RolloutState":
        return policy.set_shares(
            state, champion=champion, challenger=challenger, share=args.share, settings=settings.rollout, author=by_hand(), salt=new_salt()
        )

    return _apply(args, settings, change)


def start_trial(args: argparse.Namespace, settings: Settings) -> int:
    """Shadow first."""
    from ray_apps.models.registry import Registry
    from ray_apps.rollout import policy
    from ray_apps.rollout.controller import by_hand, new_salt

    version = Registry(Path(settings.root)).resolve(args.version)
    _check(settings, version)

    def change(state: "RolloutState | None") -> "RolloutState":
        reason = f"a person asked for a trial of model {version}"
        return policy.start(state, version, settings.rollout, reason=reason, evidence={}, author=by_hand(), salt=new_salt())

    return _apply(args, settings, change)


def _check(settings: Settings, *versions: int | None) -> None:
    """Refuse what cannot be served. A version that is named already is not checked: the service has it, or says what is wrong."""
    from ray_apps.rollout.log import RolloutLog

    state = RolloutLog(Path(settings.root)).latest()
    named = {state.champion, state.challenger} if state else set()
    for version in versions:
        if version is not None and version not in named:
            from ray_apps.serving.loadable import check_loadable  # brings torch

            check_loadable(Path(settings.root), version, settings.serving)


def hold(args: argparse.Namespace, settings: Settings) -> int:
    """What is served stays; the loop only guards."""
    from ray_apps.rollout import policy
    from ray_apps.rollout.controller import by_hand

    return _apply(args, settings, lambda state: policy.hold(state, args.reason, by_hand()))


def release(args: argparse.Namespace, settings: Settings) -> int:
    """What is served stays; the loop decides again."""
    from ray_apps.rollout import policy
    from ray_apps.rollout.controller import by_hand

    return _apply(args, settings, lambda state: policy.release(state, args.reason, by_hand()))


def promote(args: argparse.Namespace, settings: Settings) -> int:
    """Promote without more evidence. Refuses a challenger that cannot be loaded because its files are damaged or missing."""
    from ray_apps.rollout import policy
    from ray_apps.rollout.controller import by_hand
    from ray_apps.rollout.log import RolloutLog

    state = RolloutLog(Path(settings.root)).latest()
    if state is not None and state.challenger is not None:
        from ray_apps.serving.loadable import check_loadable  # brings torch

        check_loadable(Path(settings.root), state.challenger, settings.serving)
    return _apply(args, settings, lambda state: policy.promote(state, "a person asked for it", {}, by_hand()))


def abort(args: argparse.Namespace, settings: Settings) -> int:
    """The champion stays."""
    from ray_apps.rollout import policy
    from ray_apps.rollout.controller import by_hand

    return _apply(args, settings, lambda state: policy.abort(state, args.reason, {}, by_hand()))


def _apply(args: argparse.Namespace, settings: Settings, change: "Callable[[RolloutState | None], RolloutState]") -> int:
    """Publish the transition, tell the events topic if a broker is there, print the new state."""
    from pipelines.kafka.events import EventProducer
    from pipelines.runtime.tracing import start_tracing
    from ray_apps.rollout.controller import announce
    from ray_apps.rollout.log import RolloutLog

    state = RolloutLog(Path(settings.root)).transition(change)
    assert state is not None
    start_tracing(settings.telemetry, "headrace-rollout")
    if settings.kafka.bootstrap_servers:
        with EventProducer(settings) as events:
            announce(state, events, Path(settings.root))
    else:
        say(f"no Kafka runs for {settings.root}, so no event was published; the change takes effect all the same")
    if args.json:
        print_json(state.model_dump(mode="json"))
    else:
        tell("\n".join(describe(state)))
    return 0
