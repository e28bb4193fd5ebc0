"""What a user should know before shipping an artefact; read from the manifest, without any engine."""

from edge_runtime.manifest import Manifest

INT8_SQNR_DB = 25.0  # below it the worst layers are named


def findings(manifest: Manifest) -> list[str]:
    """What a user should know before shipping an artefact, one sentence each; empty when all is well."""
    said = []
    quality = manifest.quality
    if quality is not None and quality.worst_layers:
        worst = ", ".join(f"{name} {db:.1f} dB" for name, db in quality.worst_layers)
        said.append(
            f"The {manifest.precision} output has {quality.sqnr_db} dB SQNR, under the bar of {INT8_SQNR_DB:.0f} dB; worst layers: {worst}."
        )
    rows = {row.what: row.value for row in manifest.bench}
    fp32, this = rows.get("fp32 latency p50"), rows.get(f"{manifest.precision} latency p50")
    if fp32 is not None and this is not None and manifest.precision != "fp32" and this >= fp32:
        said.append(
            f"{manifest.precision} is slower than fp32 on this machine: {this:.2f} against {fp32:.2f} ms (median, in turns). "
            "Measure on the board before you choose it."
        )
    return said
