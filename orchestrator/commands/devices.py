"""`headtail devices [BOARD]`: boards that are known, and what is known of them."""

from device_profiles import DeviceProfile, list_boards, load_board
from orchestrator.commands.output import format_bytes, print_fields, print_json, print_table


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
        "Boards (null is unknown)", ("board", "name", "kind", "CPU", "memory", "flash"), [_row(p) for p in profiles]
    )


def _row(profile: DeviceProfile) -> tuple[object, ...]:
    memory = profile.sram_bytes if profile.is_microcontroller else profile.ram_bytes
    name = profile.name if profile.usable else f"{profile.name} (unusable)"
    return profile.id, name, profile.kind, profile.cpu, format_bytes(memory), format_bytes(profile.flash_bytes)


def _print_board(profile: DeviceProfile) -> None:
    fields: list[tuple[str, object]] = []
    for name in profile.__struct_fields__:
        if name in ("source", "sources"):
            continue
        value = getattr(profile, name)
        where = profile.sources.get(name)
        fields.append((name, f"{value}  [{where}]" if where is not None else value))
    fields.append(("source of the rest", profile.source))
    print_fields(profile.name, fields)
