"""`headtail inspect ARTEFACT`: what an artefact says of itself, after its hashes were checked."""

from pathlib import Path

from edge_runtime.agent_bundle import AgentBundle
from edge_runtime.artefact import Artefact
from edge_runtime.manifest import Quality, TensorSpec
from orchestrator.agent_bundle import open_any
from orchestrator.commands.output import format_bytes, print_fields, print_json, print_table


def inspect(artefact: Path, *, json: bool = False) -> None:
    """Show what an artefact says of itself.

    Args:
        artefact: A folder or .zip that `headtail export`, `headtail split` or `headtail agent-bundle` wrote.
        json: Print the manifest with its identifiers as JSON.
    """
    opened = open_any(artefact)
    if not isinstance(opened, Artefact):
        _print_agent(opened, json=json)
    elif json:
        print_json({"id": opened.id, "key": opened.key, "manifest": opened.manifest})
    else:
        _print(opened)


def _print_agent(bundle: AgentBundle, *, json: bool) -> None:
    manifest = bundle.manifest
    if json:
        print_json({"id": bundle.id, "manifest": manifest})
        return
    inside = ", ".join(f"{name} {version}" for name, version in sorted(manifest.distributions.items()))
    size = format_bytes(sum(entry.size for entry in manifest.files))
    fields: list[tuple[str, object]] = [
        ("id", bundle.id),
        ("role", manifest.role),
        ("version", manifest.version),
        ("platform", manifest.platform),
        ("python", manifest.python or "any"),
        ("inside", inside),
        ("files", f"{len(manifest.files)}, {size}"),
    ]
    print_fields(str(bundle.folder), fields)


def _print(artefact: Artefact) -> None:
    manifest = artefact.manifest
    engine, calibration, quality = manifest.engine, manifest.calibration, manifest.quality
    fields: list[tuple[str, object]] = [
        ("id", artefact.id),
        ("key on the wire", artefact.key),
        ("role", manifest.role),
        ("model", f"{manifest.model.name} (source sha256 {manifest.model.source_sha256[:16]}..)"),
        ("target", manifest.target),
        ("precision", manifest.precision),
        ("engine", f"{engine.name} {engine.built}, optimisation {engine.optimisation}, {engine.threads} thread(s)"),
        ("written by", f"{manifest.tool.name} {manifest.tool.version}"),
    ]
    if calibration is not None:
        fields.append(("calibration", f"{calibration.method}, {calibration.count} from {calibration.source}"))
    if quality is not None:
        fields.append(("quality", f"{_quality(quality)}; {quality.count} of {quality.data}"))
    if manifest.cut is not None:
        fields.append(("cut", manifest.cut.cut_id or "accepts " + ", ".join(manifest.cut.accepts)))
    fields += [("fallback", manifest.fallback or "none")]
    fields += [("licence", f"{one.subject}: {one.spdx}, {one.attribution}") for one in manifest.licences]
    print_fields(str(artefact.folder), fields)
    rows = [_tensor("in", spec) for spec in manifest.inputs] + [_tensor("out", spec) for spec in manifest.outputs]
    print_table("Tensors", ("", "name", "dtype", "shape", "layout", "meaning", "scale, zero point"), rows)
    print_table(
        "Files",
        ("path", "size", "sha256"),
        [(f.path, format_bytes(f.size), f.sha256[:16] + "..") for f in manifest.files],
    )


def _quality(found: Quality) -> str:
    """What was measured, in words; what was not is left out."""
    parts = []
    if found.this is not None:
        reference = "" if found.reference is None else f" (reference {found.reference:.2%})"
        parts.append(f"{found.metric} {found.this:.2%}{reference}")
    if found.agreement is not None:
        parts.append(f"top-1 agreement {found.agreement:.2%}")
    if found.sqnr_db is not None:
        parts.append(f"SQNR {found.sqnr_db} dB")
    return ", ".join(parts) or "not measured"


def _tensor(direction: str, spec: TensorSpec) -> tuple[object, ...]:
    quantisation = f"{spec.quantisation.scale:.6g}, {spec.quantisation.zero_point}" if spec.quantisation else None
    return direction, spec.name, spec.dtype, "x".join(map(str, spec.shape)), spec.layout, spec.semantic, quantisation
