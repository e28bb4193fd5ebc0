"""TLS as a client: our own CA alone is trusted, host names are checked, nothing older than TLS 1.2."""

import ssl

from edge_runtime.broker_url import MqttError, TlsFiles


class CertificateError(MqttError):
    """A certificate, key or CA file cannot be used."""


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """For connections to a broker or an artefact server of the fleet.

    Raises:
        CertificateError: A file is missing, or not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks host names and requires a certificate
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(files.ca)
        if files.cert is not None:
            context.load_cert_chain(files.cert, files.key)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise CertificateError(
            f"Wanted the certificates {files.ca}, {files.cert} and the key {files.key}, found: {error}. "
            "Enrol the device again: edge-agent enroll."
        ) from error
    return context
