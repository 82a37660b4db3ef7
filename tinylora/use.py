"""A bundle opened on its base."""

from pathlib import Path

from tinylora import bundle as bundles
from tinylora.base_model import LoadedBase, load_base
from tinylora.model import TreeModel
from tinylora.routing.policy import Policy


def open_bundle(
    file: Path, base_where: str | Path, policy: str, quantise: str | None = None
) -> tuple[TreeModel, LoadedBase]:
    """A bundle on its base, ready to use; `quantise` as in `load_base`.

    Raises:
        SettingError: The policy or the quantisation is unknown.
        BundleError: The file is not a sound bundle.
        BaseModelError: The base cannot be loaded, or the bundle belongs to another one.
    """
    wanted = Policy.parse(policy)
    bundle = bundles.read_bundle(file)  # before the base: it is small, and the likelier mistake
    base = load_base(base_where, quantise=quantise, feature_dim=bundle.base.feature_dim)
    bundles.check_base(bundle, base.facts)
    return TreeModel.from_bundle(bundle, base, policy=wanted), base
