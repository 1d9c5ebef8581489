"""One model for all peers of one scheduler."""

from loraplex_contract.errors import FailedPrecondition


class ModelAgreement:
    """The first peer that names a model decides it; whoever serves another one is turned away, never mixed in."""

    def __init__(self) -> None:
        self._fingerprint = ""

    def check(self, fingerprint: str) -> None:
        """Args: SHA-256 of the model's config.json.

        Raises:
            FailedPrecondition: another model than that of the peers before (MODEL_MISMATCH).
        """
        if not self._fingerprint:
            self._fingerprint = fingerprint
        if fingerprint != self._fingerprint:
            message = (
                f"the model with fingerprint {fingerprint[:12] or 'none'} is not the one that this scheduler's peers "
                f"serve, {self._fingerprint[:12]}: give every process of a deployment the same model"
            )
            raise FailedPrecondition(message, reason="MODEL_MISMATCH")
