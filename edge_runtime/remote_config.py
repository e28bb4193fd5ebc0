"""Remote configuration: which keys of the fleet an agent knows, and what its options are with them.

A key that is not known, or whose value is not allowed, changes nothing and is named in the device's report.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

import msgspec

from edge_runtime.agent_options import AgentOptions
from edge_runtime.messages import Setting
from edge_runtime.wire import MAX_LAYERS


class RemoteConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys; null: as the agent was started."""

    heartbeat_s: Annotated[float, msgspec.Meta(ge=0.5, le=3600)] | None = None
    deadline_ms: Annotated[float, msgspec.Meta(gt=0, le=600_000)] | None = None
    layers: Annotated[int, msgspec.Meta(ge=0, le=MAX_LAYERS)] | None = None
    publish_results: bool | None = None
    shadow_share: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    samples: bool | None = None  # false: send none; true allows only what the device's owner allowed
    log_level: Literal["debug", "info", "warning", "error"] | None = None


def read_config(settings: Mapping[str, Setting]) -> tuple[RemoteConfig, str | None]:
    """The keys that hold, and what is wrong with the others."""
    good: dict[str, Setting] = {}
    problems: list[str] = []
    for key, value in sorted(settings.items()):
        try:
            msgspec.convert({key: value}, RemoteConfig)
        except msgspec.ValidationError as error:
            problems.append(f"{key}={value!r}: {error}"[:200])
        else:
            good[key] = value
    return msgspec.convert(good, RemoteConfig), "; ".join(problems)[:500] or None


def with_config(options: AgentOptions, config: RemoteConfig) -> AgentOptions:
    """The options of an agent that was started with these, under this configuration."""
    offload = options.offload
    if config.deadline_ms is not None:
        offload = replace(offload, deadline_ms=config.deadline_ms)
    if config.layers is not None:
        offload = replace(offload, layers=config.layers)
    if config.shadow_share is not None:
        offload = replace(offload, shadow_share=config.shadow_share)
    return msgspec.structs.replace(
        options,
        offload=offload,
        heartbeat_s=options.heartbeat_s if config.heartbeat_s is None else config.heartbeat_s,
        publish_results=options.publish_results if config.publish_results is None else config.publish_results,
    )
