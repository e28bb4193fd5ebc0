"""`headtail devices [BOARD]`: boards that are known, and what is known of them."""

from device_profiles import DeviceProfile, list_boards, load_board
from device_profiles.quantity import quantity
from orchestrator.commands.output import print_fields, print_json, print_table


def devices(board: str | None = None, *, json: bool = False) -> None:
    """Boards that are known, and what is known of them.

    Args:
        board: Show one board with the source of every figure; "this" is the machine at hand.
        json: Print JSON instead of a table.
    """
    if board is not None:
        profile = load_board(board)
        print_json(profile) if json else _print_board(profile)
        return
    profiles = list_boards()
    if json:
        print_json(profiles)
        return
    print_table(
        "Boards (a dash is unknown)", ("board", "name", "kind", "CPU", "memory", "flash"), [_row(p) for p in profiles]
    )


def _row(profile: DeviceProfile) -> tuple[object, ...]:
    memory = "sram_bytes" if profile.is_microcontroller else "ram_bytes"
    name = profile.name if profile.usable else f"{profile.name} (unusable)"
    sizes = (quantity(field, getattr(profile, field)) for field in (memory, "flash_bytes"))
    return profile.id, name, profile.kind, profile.cpu, *sizes


def _print_board(profile: DeviceProfile) -> None:
    fields: list[tuple[str, object]] = []
    unknown = []
    for name in profile.__struct_fields__:
        value = getattr(profile, name)
        if name in ("name", "source", "sources", "usable"):
            continue
        if value is None or value == ():
            unknown.append(name)
            continue
        where = profile.sources.get(name)
        text = quantity(name, value)
        fields.append((name, text if where is None else f"{text} ({where})"))
    fields += [("unknown", ", ".join(unknown) or "nothing"), ("source of the rest", profile.source)]
    print_fields(profile.name if profile.usable else f"{profile.name} (unusable)", fields)
