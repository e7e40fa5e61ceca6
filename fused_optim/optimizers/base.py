"""The base optimizer, which keeps torch's optimizer contract and hands buckets to backends.

A subclass has its hyperparameters, the specification of its state and the formulas of a step's
scalars. It does no tensor arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from operator import is_
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, TypeVar

import torch

from fused_optim import errors, precision
from fused_optim.backends import dispatch
from fused_optim.backends.interface import Row
from fused_optim.distributed import clipping, geometry
from fused_optim.ops import FAMILIES
from fused_optim.optimizers import validation
from fused_optim.optimizers.agreeing import Agreeing
from fused_optim.optimizers.numerics import NumericsReport
from fused_optim.optimizers.running import Running
from fused_optim.optimizers.state_dicts import loading, saving
from fused_optim.optimizers.summary import Summary
from fused_optim.plan import capture, collect, exchange, spread, upload
from fused_optim.plan.steady import Steady, increment_versions
from fused_optim.precision import checks, state
from fused_optim.precision.export import Float32Weights

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_Function = TypeVar("_Function", bound=Callable[..., Any])
# Private to torch, so optional: it keeps torch.compile from tracing into a function.
_disable_dynamo: Callable[[_Function], _Function] = getattr(torch, "_disable_dynamo", lambda f: f)


def _nothing() -> None:
    pass


class CommonOptions(TypedDict, total=False):
    """Keyword arguments that every optimizer takes; `FusedOptimizer` says what they do."""

    backend: str
    low_precision: str
    state_dtype: torch.dtype | Literal["int8"] | None
    maximize: bool
    capturable: bool
    max_grad_norm: float | None
    clip_group: ProcessGroup | None
    seed: int
    skip_nonfinite: bool
    check_ranks: bool


class FusedOptimizer(
    Agreeing, Running, Float32Weights, NumericsReport, Summary, torch.optim.Optimizer
):
    """Base of every optimizer here.

    Args:
        params: parameters, named parameters or parameter groups, as for any torch optimizer.
        defaults: the subclass's hyperparameters.
        backend: ``"auto"`` runs each device on the fastest backend that works there. ``"cuda"``,
            ``"triton"``, ``"cpu"`` and ``"eager"`` name one, which is checked at once. CPU tensors
            run on cpu where it was built and has the update, else on eager; only on eager if that
            is named.
        low_precision: how the float32 value of a 16-bit parameter is kept: ``"auto"``,
            ``"nearest"``, ``"stochastic"``, ``"kahan"``, ``"split"`` or ``"master"``.
        state_dtype: how moments are stored: ``torch.float32``, ``torch.bfloat16``,
            ``torch.float16``, ``"int8"``, or None for torch's footprint.
        maximize: ascend instead of descend.
        capturable: keep step counts and learning rates on the device, for CUDA graphs:
            ``state[p]["step"]`` and ``group["lr"]`` are 0-d tensors. Schedulers write to the
            latter in place, so a replayed graph follows them, as it does betas, eps and
            weight decay that are given as tensors on the device. Nothing is read back, nor is a
            ``GradScaler``'s ``found_inf``.
        max_grad_norm: scale all gradients together to at most this norm, as
            ``torch.nn.utils.clip_grad_norm_`` does, within the step and without writing to them.
        clip_group: the ``torch.distributed`` process group over whose ranks the gradients are
            spread, each with a part of its own (FSDP1, ``ZeroRedundancyOptimizer``): the norm is
            that of all parts, and every rank has to make every step. None where each rank has all
            gradients, as with DistributedDataParallel. ``ZeroRedundancyOptimizer`` saves what it
            passes on, which a process group does not survive: set ``zero.optim.clip_group``.
        seed: of stochastic rounding, 64 bits. Use the same one on every replica. An optimizer
            numbers its own parameters, so where there is one optimizer for each parameter, give
            each a seed of its own: with the same one all would round by the same random bits.
        skip_nonfinite: leave out a step in which any gradient, of any process that holds a part of
            a parameter or is in the ``clip_group``, is infinite or NaN: nothing changes anywhere.
            Takes one more pass over the gradients, and one all-reduce of 4 bytes for each group of
            processes. With ``capturable`` nothing is read back from the device.
        check_ranks: in the first step, compare what the processes that hold DTensors optimize, by
            one all-reduce of 264 bytes for each group of them, and raise where they differ.

    Attributes:
        skipped_steps: how many steps ``skip_nonfinite`` has left out.
        grad_norm: 0-d tensor, the norm of all gradients in the last step before clipping; None
            before the first step and without ``max_grad_norm``.
        fused_unscale: whether a ``GradScaler`` may leave unscaling to ``step``. It has to for
            float16 parameters, so there it always may. Where it may, gradients stay scaled, so
            that clipping them between ``backward`` and ``step`` clips too early; use
            ``max_grad_norm``.
    """

    _family: ClassVar[str]  # one of `fused_optim.ops.FAMILIES`
    _group_options: ClassVar[tuple[str, ...]] = ()  # common options that torch keeps in its groups
    _aliases: ClassVar[dict[str, str]] = {}  # a peer's key of the state to this optimizer's
    _foreign: ClassVar[tuple[str, ...]] = ()  # keys of the state that only other optimizers have
    _shows_torch_steps: ClassVar[bool] = False  # step counts of state dicts are tensors
    _attributes: ClassVar[tuple[str, ...]] = validation.OF_THE_OPTIMIZER
    _pickled: ClassVar[tuple[str, ...]] = (
        *_attributes,
        *("fused_unscale", "grad_norm", "_options", "_skipped"),
    )

    # The options of groups that have no other.
    _options: Mapping[str, Any] = MappingProxyType({})
    # The groups' settings and the optimizer's attributes, as they passed the last check.
    _checked: Sequence[dict[str, Any] | None] = ()
    _checked_attributes: Sequence[Any] = ()
    # By what a step sees that the tables of the last one still hold. Never saved.
    _steady: Steady | None = None
    _take_back: Callable[[], None] = staticmethod(_nothing)
    _begun: bool = False  # whether an earlier part of this step has prepared it

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        backend: str = "auto",
        low_precision: str = "auto",
        state_dtype: torch.dtype | Literal["int8"] | None = torch.float32,
        maximize: bool = False,
        capturable: bool = False,
        max_grad_norm: float | None = None,
        clip_group: ProcessGroup | None = None,
        seed: int = 0,
        skip_nonfinite: bool = False,
        check_ranks: bool = True,
        **unknown: Any,
    ) -> None:
        if unknown:
            validation.refuse_options(type(self), unknown, FusedOptimizer)
        self.backend = backend
        self.max_grad_norm = max_grad_norm
        self.clip_group = clip_group
        self.seed = seed
        self.skip_nonfinite = skip_nonfinite
        self.check_ranks = check_ranks
        self.fused_unscale = False
        self.grad_norm = None
        self._check_attributes()
        # Not in the groups: a checkpoint needs each of their keys, and a peer's lacks these.
        self._options = {
            "low_precision": low_precision,
            "state_dtype": state_dtype,
            "maximize": maximize,
            "capturable": capturable,
        }
        in_groups = {name: self._options.pop(name) for name in self._group_options}
        super().__init__(params, {**defaults, **in_groups})

    # What a subclass provides.

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise ValueError for hyperparameters that can't be used.

        It is called whenever one has changed. Here and below, ``group`` is what `settings` returns.
        """
        raise NotImplementedError

    def _check_new_group(self, group: dict[str, Any]) -> None:
        """Raise ValueError for options that a user must not combine, though a scheduler may."""

    def _state_spec(
        self, group: dict[str, Any], param: torch.Tensor
    ) -> tuple[state.StateTensor, ...]:
        """Return a parameter's state, but for the tensor that its precision mode adds.

        It may depend on the parameter's dtype and on whether it has two dimensions.
        """
        raise NotImplementedError

    def _row(self, group: dict[str, Any], step: int | torch.Tensor, variant: Hashable) -> Row:
        """Return the scalars of a step; ``variant`` is what `_row_variant` returned.

        Implementations use `fused_optim.optimizers.scalars`, as ``step`` is a float64 tensor in
        capturable groups, with one count for each parameter of this variant.
        """
        raise NotImplementedError

    def _row_variant(self, group: dict[str, Any], index: int, param: torch.Tensor) -> Hashable:
        """Return what a parameter's scalars depend on beside its group and its step count."""
        return None

    def _structure(self, group: dict[str, Any]) -> Hashable:
        """Return the options of a group that decide on buckets, state and row variants."""
        return (
            group["low_precision"],
            group["state_dtype"],
            group["capturable"],
            group.get("amsgrad", False),
            group.get("beta1") is None,
        )

    def _prepare_step(self) -> Callable[[], None]:
        """Prepare a step that updates something.

        Returns:
            A function that undoes the preparation, which is called if the step raises.
        """
        return _nothing

    def _check_members(self, group: dict[str, Any]) -> None:
        """Raise ValueError for parameters that do not match other entries of their group."""

    # torch's contract.

    @_disable_dynamo
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, checked like those of the constructor.

        Raises:
            ValueError: a hyperparameter or parameter can't be used; nothing was added.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        given, param_group = param_group, dict(param_group)
        validation.check_keys(param_group, self)
        if not isinstance(param_group["params"], (torch.Tensor, set)):
            param_group["params"] = list(param_group["params"])
            validation.check_params(param_group["params"])
        super().add_param_group(param_group)
        try:
            self._validate(len(self.param_groups) - 1)
        except Exception:
            self.param_groups.pop()
            raise
        if self.settings(param_group)["capturable"]:
            capture.make_lr_tensor(param_group)
        given.update(param_group)
        self.param_groups[-1] = given  # as torch, which adds the very dict it is given

    def settings(self, group: dict[str, Any]) -> dict[str, Any]:
        """Return a group's hyperparameters and options; the optimizer's fill in for missing ones.

        Steps read them here. Write to the group to change one: the returned dict is a copy.
        """
        return {**self._options, **group}

    def _validate(self, group_index: int) -> None:
        """Check a new group and its parameters."""
        group = self.settings(self.param_groups[group_index])
        self._check_settings(group, group_index)
        with errors.naming(f"{type(self).__name__}, group {group_index}: "):
            self._check_new_group(group)
        for index, param in enumerate(group["params"]):
            if not checks.trains(param):  # a step checks it once it has a gradient
                continue
            where = f"{type(self).__name__}: {errors.place(group, group_index, index)}"
            checks.check_param(param, where)
            with errors.naming(f"{where}: "):
                precision.resolve_mode(group["low_precision"], param.dtype)

    def _check_attributes(self) -> None:
        """Raise for options of the whole optimizer that can't be used; a user may have set them."""
        dispatch.check_backend(self.backend, FAMILIES[self._family].updates[-1])
        if self.max_grad_norm is not None:
            validation.check_number(self.max_grad_norm, "max_grad_norm", low=0.0)
        clipping.check_group(self.clip_group)
        validation.check_flag(self.skip_nonfinite, "skip_nonfinite")
        validation.check_flag(self.check_ranks, "check_ranks")
        seed = self.seed
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise ValueError(f"Invalid seed: {seed!r} - should be an integer in [0, 2**64)")

    def _check_settings(self, settings: dict[str, Any], group_index: int) -> None:
        with errors.naming(f"{type(self).__name__}, group {group_index}: "):
            validation.check_common(settings)
            self._check_group(settings)

    def _checked_settings(self) -> Sequence[dict[str, Any]]:
        """Return every group's settings, after checking those that changed since the last step.

        The checks read nothing from a device.

        Raises:
            ValueError: a setting can't be used; nothing was changed.
        """
        attributes = [getattr(self, name) for name in self._attributes]
        if len(self._checked_attributes) != len(attributes) or not all(
            map(is_, self._checked_attributes, attributes)
        ):
            self._check_attributes()
            self._checked_attributes, self._steady = attributes, None
        found = [self.settings(group) for group in self.param_groups]
        known = self._checked if len(self._checked) == len(found) else [None] * len(found)
        checked = []
        for index, now in enumerate(found):
            before = known[index]
            if not validation.same_settings(before, now):
                validation.check_there(now, self.defaults, f"{type(self).__name__}, group {index}")
                self._check_settings({k: validation.unread(v) for k, v in now.items()}, index)
                before = validation.settled(now)
            checked.append(before)
        self._checked = checked
        return found

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
                parameter; or ``max_grad_norm`` would clip by the norm of a shard.
            ValueError: a group has a hyperparameter that can't be used, or a parameter's state does
                not fit it.

        Whatever it raises, step counts, state and parameters are as they were.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step_once()
        return loss

    def _step_once(self) -> None:
        """Update every parameter that has a gradient now."""
        settings = self._checked_settings()
        self._check_last()
        if self._steady is None:
            self._spread = spread.spread_of(self)
        self._check_ranks_agree(settings)
        # Step counts on the host require the decision to skip on the host too.
        on_device = all(group["capturable"] for group in settings)
        found_inf = self._overflow(on_device)
        if found_inf is not None and not on_device and found_inf.item() != 0:
            return
        captures = upload.capturing()
        known, self._steady = self._steady, None  # no step goes on from one that raises
        try:
            if captures or known is None or not known.step(self, settings, self._run_step):
                self._step_anew(found_inf, captures)
            else:
                self._steady = known
        except BaseException:
            self._take_back()
            raise
        finally:
            self._take_back = _nothing

    def _begin(self) -> None:
        """Begin a step that updates something; a later part of one step has begun already."""
        if not self._begun:
            self._take_back = self._prepare_step()

    def _step_anew(self, found_inf: torch.Tensor | None, captures: bool) -> None:
        """Make a step that collects its tensors anew, and reuses device tables alone."""
        for index, group in enumerate(self.param_groups):
            with errors.naming(f"{type(self).__name__}, group {index}: "):
                self._check_members(group)
        pending = collect.parameters_with_gradients(self)
        kinds = collect.kinds(self, [(index, param) for index, _, param, _, _ in pending])
        if captures:
            capture.check_capture(self, pending)
        self._spread = spread.spread_of(self)
        clipping.check_apart(self.clip_group, self._spread.groups)
        if self._clips_by_whole_norms():
            clipping.check_whole(self, pending)
        collect.check_states(self, pending, kinds)
        if pending:
            self._begin()
        for (_, _, param, _, _), kind in zip(pending, kinds, strict=True):
            state.ensure(param, self.state[param], kind.spec, kind.key.capturable)
        homes = collect.sorted_into_buckets(self, pending, kinds)
        row_keys, count, uncount = collect.give_rows(self, pending, homes, found_inf)
        buckets = list({id(bucket): bucket for bucket, _ in homes}.values())
        works = [self._work_on(bucket, anew=captures) for bucket in buckets]
        self._exchange = exchange.exchange_of(self._spread, works, homes)
        try:
            self._run_step(works)
        except BaseException:
            uncount()
            raise
        count()
        # Nobody else tells autograd of DTensors, whose parts are written to.
        dtensors = [param for _, _, param, _, _ in pending if geometry.is_dtensor(param)]
        increment_versions(dtensors)
        for work in works:
            increment_versions(work.written())
        if not captures:  # fused_optim/plan/capture.py, note: [capture]
            plans = [work.plan for work in works if work.plan is not None]
            capture.prepare_capture(plans)
            self._plans = {(plan.key, plan.backend): plan for plan in plans}
            lasts = pending and not torch.is_inference_mode_enabled()
            lasts = lasts and Steady.holds_for(pending, kinds)
            self._steady = Steady(self, pending, kinds, works, row_keys) if lasts else None

    def init_state(self) -> None:
        """Create the state of every parameter now, so that a lack of memory shows at once.

        Frozen parameters need none, and lazy ones can't have any yet.

        Raises:
            ValueError: a parameter's state does not fit it; nothing was changed.
        """
        pending = collect.trained_parameters(self)
        kinds = collect.kinds(self, [(index, param) for index, _, param, _, _ in pending])
        collect.check_states(self, pending, kinds)
        for (_, _, param, _, _), kind in zip(pending, kinds, strict=True):
            state.ensure(param, self.state[param], kind.spec, kind.key.capturable)

    @_disable_dynamo
    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch does, with the hyperparameters of each group.

        How state is stored (``low_precision``, ``state_dtype``, ``capturable``) is the
        constructor's affair and not in the dict. Tensors are the optimizer's own, not copies, but
        for step counts where torch keeps them as tensors.
        """
        return saving.shown(self, super().state_dict())

    @_disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this optimizer, of torch's, of transformers' or of apex.

        Hyperparameters become the dict's; those it lacks stay. How state is stored stays the
        constructor's (``low_precision``, ``state_dtype``, ``capturable``), and the dict's tensors
        are converted to that, never to the parameter's dtype. With equal options a resumed run
        equals an uninterrupted one bit for bit, whichever of model and optimizer is loaded first.

        Where the dict and the optimizer have ``param_names``, state goes by name. The state of
        bitsandbytes' 32-bit optimizers, TransformerEngine and torch's NAdam is translated, which a
        warning says.

        Raises:
            ValueError: the dict is no state dict or of another model or optimizer, lacks a moment,
                or has a value that can't be used; nothing was changed.
        """
        if not isinstance(state_dict, Mapping):
            raise ValueError(
                f"{type(self).__name__}.load_state_dict takes what state_dict() returned, not a "
                f"{type(state_dict).__name__}"
            )
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        self.__setstate__(loading.converted(self, state_dict))
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict[str, Any]:
        if self.clip_group is not None:
            raise TypeError(
                f"{type(self).__name__} has a clip_group, and a process group can't be pickled or "
                "copied; save state_dict(), or set optimizer.clip_group = None for the time being"
            )
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self._pickled}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                if name != "differentiable":  # torch adds this one to every optimizer's defaults
                    group.setdefault(name, value)

    def _translated_group(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Return a loaded group in this optimizer's vocabulary."""
        return saved

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether torch's GradScaler may hand ``grad_scale`` and ``found_inf`` to `step`."""
        params = (p for group in self.param_groups for p in group["params"] if p.requires_grad)
        return self.fused_unscale or any(p.dtype is torch.float16 for p in params)
