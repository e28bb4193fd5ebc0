"""`headtail agent-bundle`: put the agent's own code into a bundle that can be signed and rolled out."""

import sys
from pathlib import Path

from orchestrator.agent_bundle import bundle_installed, bundle_wheels
from orchestrator.commands.output import format_bytes, print_json


def agent_bundle(
    *wheels: Path,
    out: Path,
    pure: bool = False,
    json: bool = False,
) -> None:
    """Make a bundle of the agent for devices to update themselves to: sign it, then `headtail fleet add agent@VERSION`.

    Args:
        wheels: headtail's wheel, and those of dependencies that must come along; the headtail that runs here, without its
            dependencies, when not given.
        out: Folder of the bundle.
        pure: Leave out what is compiled, so that the bundle of this headtail runs on every machine.
        json: Print JSON.
    """
    made = bundle_wheels(out, wheels) if wheels else bundle_installed(out, pure=pure)
    manifest = made.manifest
    if json:
        print_json({"bundle": made.id, "version": manifest.version, "platform": manifest.platform})
        return
    size = format_bytes(sum(entry.size for entry in manifest.files))
    where = "any machine" if manifest.platform == "any" else f"Linux on {manifest.platform}"
    sys.stdout.write(
        f"{out}: agent {manifest.version} for {where}, {len(manifest.files)} files, {size}. "
        f"Sign it: headtail sign {out} --key KEY.pem\n"
    )
