"""The base optimizer: torch's optimizer contract on one side, buckets for a backend on the other.

A subclass says which hyperparameters it has, which state it keeps and which scalars a step needs.
It does no tensor arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, ClassVar, TypedDict

import torch

from fused_optim import dispatch, loading, precision, state, validation
from fused_optim.launch import Bucket, BucketKey, Launch, Row, TensorEntry

# Private to torch, so optional: it keeps torch.compile from tracing into a function.
_disable_dynamo = getattr(torch, "_disable_dynamo", lambda function: function)

STRUCTURAL_OPTIONS = ("low_precision", "state_dtype", "capturable")
"""Options that say how state is stored. They stay the constructor's when a state dict is loaded."""


class CommonOptions(TypedDict, total=False):
    """Keyword arguments that every optimizer takes; `FusedOptimizer` says what they do."""

    backend: str
    low_precision: str
    state_dtype: torch.dtype | None
    maximize: bool
    capturable: bool
    max_grad_norm: float | None
    seed: int


class FusedOptimizer(torch.optim.Optimizer):
    """Base of every optimizer here.

    Args:
        params: parameters, named parameters or parameter groups, as for any torch optimizer.
        defaults: the subclass's hyperparameters.
        backend: ``"auto"`` runs each device on the fastest backend that works there. ``"cuda"``,
            ``"triton"`` and ``"eager"`` name one, which is checked at once. CPU tensors always
            run on eager.
        low_precision: how the float32 value of a 16-bit parameter is kept: ``"auto"``,
            ``"nearest"``, ``"stochastic"``, ``"kahan"``, ``"split"`` or ``"master"``.
        state_dtype: how moments are stored, or None for torch's footprint.
        maximize: ascend instead of descend.
        capturable: keep step counts and learning rates on the device, for CUDA graphs.
        max_grad_norm: scale all gradients together to at most this norm, as
            ``torch.nn.utils.clip_grad_norm_`` does, within the step and without writing to them.
        seed: of stochastic rounding, 64 bits. Use the same one on every replica.

    Attributes:
        grad_norm: 0-d tensor, the norm of all gradients in the last step before clipping; None
            before the first step and without ``max_grad_norm``.
        fused_unscale: whether a ``GradScaler`` may leave unscaling to ``step``. It has to for
            float16 parameters, so there it always may. Where it may, gradients stay scaled, so
            that clipping them between ``backward`` and ``step`` clips too early; use
            ``max_grad_norm``.
    """

    _family: ClassVar[str]
    _statistics: ClassVar[str | None] = None  # the op that comes before clipping, if one does
    _updates: ClassVar[tuple[str, ...]]  # the ops that come after it
    _aliases: ClassVar[dict[str, str]] = {}
    _pickled: ClassVar[tuple[str, ...]] = ("backend", "max_grad_norm", "seed", "fused_unscale")

    grad_norm: torch.Tensor | None = None
    fused_unscale: bool = False

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        backend: str = "auto",
        low_precision: str = "auto",
        state_dtype: torch.dtype | None = torch.float32,
        maximize: bool = False,
        capturable: bool = False,
        max_grad_norm: float | None = None,
        seed: int = 0,
    ) -> None:
        dispatch.check_backend(backend, self._updates[-1])
        if max_grad_norm is not None:
            validation.check_number(max_grad_norm, "max_grad_norm", low=0.0)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise ValueError(f"Invalid seed: {seed!r} - should be an integer in [0, 2**64)")
        self.backend = backend
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        common = {
            "low_precision": low_precision,
            "state_dtype": state_dtype,
            "maximize": maximize,
            "capturable": capturable,
        }
        super().__init__(params, {**defaults, **common})

    # What a subclass provides.

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise ValueError for hyperparameters that can't be used."""
        raise NotImplementedError

    def _state_spec(
        self, group: dict[str, Any], param: torch.Tensor
    ) -> tuple[state.StateTensor, ...]:
        """Return the state of a parameter, bar what its precision mode adds."""
        raise NotImplementedError

    def _row(self, group: dict[str, Any], step: int, variant: Hashable) -> Row:
        """Return the scalars of a step; ``variant`` is what `_row_variant` returned."""
        raise NotImplementedError

    def _row_variant(self, group: dict[str, Any], index: int, param: torch.Tensor) -> Hashable:
        """Return what else than group and step count a parameter's scalars depend on."""
        return None

    def _prepare_step(self) -> None:
        """Do what comes before each step that updates something."""

    def _clip(self, launches: list[tuple[Bucket, Launch]], sums: list[torch.Tensor] | None) -> None:
        """Set the launches' clip coefficients.

        Args:
            launches: the buckets of the step.
            sums: each bucket's sums of squared gradients, where a statistics op returned them.
        """
        if self.max_grad_norm is None or not launches:
            return
        self.grad_norm = self._global_norm(launches, sums)
        coefficient = (self.max_grad_norm / (self.grad_norm + 1e-6)).clamp(max=1.0)
        for bucket, launch in launches:
            launch.clip = coefficient.to(bucket.key.device)

    def _global_norm(
        self, launches: list[tuple[Bucket, Launch]], sums: list[torch.Tensor] | None
    ) -> torch.Tensor:
        """Return the norm of all gradients together, on the first bucket's device."""
        if sums is None:
            sums = self._run("grad_square_sums", launches)
        return torch.stack([s.sum().to(sums[0].device) for s in sums]).sum().sqrt()

    def _run(self, op: str, launches: list[tuple[Bucket, Launch]]) -> list:
        """Run one op on every bucket and return what it returned."""
        results = []
        for bucket, launch in launches:
            backend = dispatch.choose(self.backend, self._updates[-1], bucket.key.device)
            results.append(getattr(dispatch.load(backend), op)(bucket, launch))
        return results

    # torch's contract.

    @_disable_dynamo
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, checked like those of the constructor.

        Raises:
            ValueError: a hyperparameter or parameter can't be used; nothing was added.
            NotImplementedError: the group asks for ``capturable``.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        if not isinstance(param_group["params"], (torch.Tensor, set)):
            param_group["params"] = list(param_group["params"])
            validation.check_params(param_group["params"])
        given = set(param_group)
        super().add_param_group(param_group)
        try:
            self._validate(len(self.param_groups) - 1)
        except Exception:
            self.param_groups.pop()
            for key in set(param_group) - given:
                del param_group[key]
            raise

    def _validate(self, group_index: int) -> None:
        group = self.param_groups[group_index]
        try:
            validation.check_common(group)
            self._check_group(group)
        except ValueError as error:
            where = f"{type(self).__name__}, group {group_index}: "
            raise ValueError(where + str(error)) from None
        for index, param in enumerate(group["params"]):
            where = f"{type(self).__name__}: {validation.place(group, group_index, index)}"
            validation.check_param(param, where)
            try:
                precision.resolve_mode(group["low_precision"], param.dtype)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        if group["capturable"]:
            raise NotImplementedError(
                f"{type(self).__name__}, group {group_index}: capturable=True has no "
                "implementation in the eager, triton or cuda backend of this version; "
                "use capturable=False"
            )

    @_disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        ``p.main_grad``, where present, is used instead of ``p.grad``. Parameters without a
        gradient are left alone, their step counts included.

        Args:
            closure: re-evaluates the model and returns the loss; called with gradients enabled.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: a gradient is sparse, or of another shape, device or kind than its
                parameter; nothing was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # With a fused GradScaler the decision to skip is on the device, but step counts are not.
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item() != 0:
            return loss
        pending = list(self._parameters_with_gradients())
        for group_index, index, param, _, _ in pending:
            self._ensure_state(self.param_groups[group_index], param, index)
        if pending:
            self._prepare_step()
        launches = [(bucket, self._launch(bucket.key.device)) for bucket in self._buckets(pending)]
        sums = self._run(self._statistics, launches) if self._statistics else None
        self._clip(launches, sums)
        for op in self._updates:
            self._run(op, launches)
        return loss

    def init_state(self) -> None:
        """Create the state of every parameter now, so that a lack of memory shows at once."""
        for group in self.param_groups:
            for index, param in enumerate(group["params"]):
                self._ensure_state(group, param, index)

    @_disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch does; dtypes of the groups are given by name."""
        result = super().state_dict()
        for group in result["param_groups"]:
            if isinstance(group.get("state_dtype"), torch.dtype):
                group["state_dtype"] = str(group["state_dtype"]).removeprefix("torch.")
        return result

    @_disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this optimizer, of torch's, of transformers' or of apex.

        Hyperparameters become the dict's; those it lacks stay. How state is stored stays the
        constructor's (``low_precision``, ``state_dtype``, ``capturable``), and the dict's tensors
        are converted to that, never to the parameter's dtype. With equal options a resumed run
        equals an uninterrupted one bit for bit, whichever of model and optimizer is loaded first.

        Raises:
            ValueError: the dict's groups or shapes are not this optimizer's; nothing was changed.
        """
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        self.__setstate__(loading.converted(self, state_dict))
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self._pickled}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def _translated_group(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Return a loaded group in this optimizer's vocabulary."""
        return saved

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether torch's GradScaler may hand ``grad_scale`` and ``found_inf`` to `step`."""
        params = (p for group in self.param_groups for p in group["params"])
        return self.fused_unscale or any(p.dtype is torch.float16 for p in params)

    # From parameters to buckets.

    def _parameters_with_gradients(
        self,
    ) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor, int]]:
        """Yield (group index, index in it, parameter, gradient, number), all checked."""
        number = -1
        for group_index, group in enumerate(self.param_groups):
            for index, param in enumerate(group["params"]):
                number += 1
                grad = getattr(param, "main_grad", None)
                if grad is None:
                    grad = param.grad
                if grad is None:
                    continue
                if not _plain(param, grad):
                    where = validation.place(group, group_index, index)
                    validation.check_gradient(grad, param, type(self).__name__, where)
                yield group_index, index, param, grad, number

    def _ensure_state(self, group: dict[str, Any], param: torch.Tensor, index: int) -> None:
        mode = precision.resolve_mode(group["low_precision"], param.dtype)
        spec = self._state_spec(group, param) + state.extra_tensor(mode, param.dtype)
        state.ensure(param, self.state[param], spec)

    def _launch(self, device: torch.device) -> Launch:
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        return Launch(
            grad_scale=None if scale is None else scale.to(device),
            found_inf=None if found_inf is None else found_inf.to(device),
            seed=self.seed,
        )

    def _buckets(self, pending: list) -> list[Bucket]:
        """Advance the step counts of the pending parameters and sort them into buckets."""
        buckets: dict[BucketKey, Bucket] = {}
        for group_index, index, param, grad, number in pending:
            group, param_state = self.param_groups[group_index], self.state[param]
            mode = precision.resolve_mode(group["low_precision"], param.dtype)
            key = BucketKey(
                self._family,
                param.device,
                param.dtype,
                mode,
                group.get("amsgrad", False),
                group["capturable"],
            )
            bucket = buckets.get(key)
            if bucket is None:
                bucket = buckets[key] = Bucket(key)
            param_state["step"] = step = param_state["step"] + 1
            variant = self._row_variant(group, index, param)
            row = bucket.row_index.get((group_index, step, variant))
            if row is None:
                row = bucket.row_index[group_index, step, variant] = len(bucket.rows)
                bucket.rows.append(self._row(group, step, variant))
            spec = self._state_spec(group, param) + state.extra_tensor(mode, param.dtype)
            tensors = {tensor.field: param_state[tensor.key] for tensor in spec}
            bucket.entries.append(TensorEntry(param, grad, row, number, **tensors))
        return list(buckets.values())


def _plain(param: torch.Tensor, grad: torch.Tensor) -> bool:
    """Return whether a gradient obviously fits its parameter: the fast way past the checks."""
    return (
        grad.layout is torch.strided
        and grad.dtype in precision.SUPPORTED_DTYPES
        and grad.shape == param.shape
        and grad.device == param.device
    )
