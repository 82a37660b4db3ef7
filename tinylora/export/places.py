"""Where a base has its projections, by the names of its own modules, which a bundle does not know."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tinylora.bundle import Bundle
from tinylora.config import ProjectionShape
from tinylora.errors import SettingError


class Places(BaseModel):
    """Where a base has its projections."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modules: dict[str, tuple[str, ...]]
    """By projection: the modules' names, in the order of layers."""
    is_transposed: bool = False
    """Whether their weights are kept as (in, out), as GPT-2's are."""

    @classmethod
    def find(cls, where: str | Path) -> "Places":
        """Of a base in a folder or the hub's local cache; its config is enough.

        Raises:
            BaseModelError: There is no config that transformers knows.
        """
        from tinylora.base_model import find_structure  # transformers takes seconds to load

        found = find_structure(where)
        return cls(modules=found.modules, is_transposed=found.is_transposed)

    @classmethod
    def read(cls, file: Path) -> "Places":
        """As `to_json` wrote them.

        Raises:
            SettingError: The file is missing, or says something else.
        """
        try:
            return cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            raise SettingError(f"{file}: does not say where the base has its projections; give the base") from None

    def to_json(self) -> str:
        """One document."""
        return self.model_dump_json(indent=1) + "\n"

    def targets(self, projection: str) -> tuple[str, ...]:
        """What PEFT calls the projection: its name, where every module ends with it; else all modules one by one."""
        modules = self.modules[projection]
        return (projection,) if all(module.endswith(f".{projection}") for module in modules) else modules

    def of_modules(self) -> dict[str, tuple[str, int]]:
        """By module: its projection, and which of the projection's layers it is."""
        return {
            module: (projection, layer)
            for projection, modules in self.modules.items()
            for layer, module in enumerate(modules)
        }


def check_places(bundle: Bundle, places: Places) -> None:
    """Check that there is a module for every layer of every projection of the bundle.

    Raises:
        SettingError: The places are those of another base.
    """
    for projection, shape in sorted(bundle.base.projections.items()):
        n_found = len(places.modules.get(projection, ()))
        if n_found != shape.n_layers:
            raise SettingError(
                f"projection {projection}: base {bundle.base.base_id} has {shape.n_layers} layers of it, the base that "
                f"was looked at has {n_found}; give the base that the run is on"
            )


def check_shapes(bundle: Bundle, shapes: dict[str, ProjectionShape], where: str) -> None:
    """Check that a base has the very projections that the bundle was made for.

    Raises:
        SettingError: It has others, or of other sizes.
    """
    wanted = bundle.base.projections
    for projection in sorted(wanted.keys() | shapes.keys()):
        needed, found = (_size(known.get(projection)) for known in (wanted, shapes))
        if needed != found:
            raise SettingError(
                f"{where}: not the base of this bundle: projection {projection}: {bundle.base.base_id} has {needed}, "
                f"this base has {found}; give the base that the run is on"
            )


def _size(shape: ProjectionShape | None) -> str:
    return "none" if shape is None else f"{shape.n_layers} of {shape.in_features} to {shape.out_features}"
