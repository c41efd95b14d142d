"""A backend that describes a module's parameters as another capture did: in its order, and with its roles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tlx.backend import Model, ParamSpec
from tlx.proof.artifact import Capture
from tlx.proof.recorder import Proxy


class Listed(Proxy):
    """So a port that registers its layers in another order, or writes a norm by hand, trains by the same groups."""

    def __init__(self, inner: Any, reference: Capture) -> None:
        """Describe what `inner` builds as the record P1 of `reference` does."""
        super().__init__(inner)
        record = reference.records.get("P1")
        specs = [spec for spec in record.facts["specs"] if isinstance(spec, list) and len(spec) > 3] if record else []
        self.order = {str(spec[0]): number for number, spec in enumerate(specs)}
        self.roles: dict[str, Any] = {str(spec[0]): spec[3] for spec in specs if spec[3] in ("weight", "bias", "norm")}

    def param_specs(self, model: Model) -> tuple[ParamSpec, ...]:
        """Describe every parameter and buffer, in the reference's order."""
        specs = sorted(self.inner.param_specs(model), key=lambda spec: self.order.get(spec.name, len(self.order)))
        return tuple(
            spec if spec.role == "statistic" else replace(spec, role=self.roles.get(spec.name, spec.role))
            for spec in specs
        )
