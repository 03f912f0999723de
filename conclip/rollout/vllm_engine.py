"""The rollout engine on vLLM, which only this module and `rollout.transfer` import.

Everything runs in the calling process, which is fastest on one CPU, unless several GPUs or cores share a model
(`rollout.tensor_parallel_size`): then vLLM starts workers. `rollout.child` puts this class into a child process where one is
wanted.
"""

import gc
import logging
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import torch

from conclip.config.groups import AdapterConfig, RolloutConfig
from conclip.config.machine import check_repeats
from conclip.errors import UserError, explain
from conclip.grading.thinking import ThinkingTags
from conclip.models.chat_template import end_of_turn, named_tokens
from conclip.models.folder import linear_layers
from conclip.models.load import load_tokenizer, read_weights
from conclip.processes import lasting
from conclip.rollout.platform import check_platform, configure_environment
from conclip.rollout.weights import as_folder
from conclip.types import Completion, Request, SamplingSpec


class VllmEngine:
    """A `RolloutEngine` around vLLM's `LLMEngine`.

    Log-probs are the processed ones (temperature applied), for sampled tokens only.
    """

    def __init__(
        self,
        model_path: Path,
        config: RolloutConfig,
        *,
        dtype: str,
        seed: int,
        max_model_len: int,
        trust_remote_code: bool = False,
        stop_tokens: Sequence[str] = (),
        thinking_tags: ThinkingTags | None = None,
        adapter: AdapterConfig | None = None,
        weight_transfer: str | None = None,
    ) -> None:
        """Start vLLM. `stop_tokens` end a response, as the model's own end tokens do; `thinking_tags` are required where
        requests have a thinking budget; `adapter` is one that `update_weights` may bring; `weight_transfer` names the
        backend of vLLM's that `transfer` is for. Raises UserError when vLLM refuses the model or the settings."""
        configure_environment(deterministic=config.deterministic, dtype=dtype)
        with lasting():
            from vllm import EngineArgs, LLMEngine  # noqa: PLC0415  seconds to import, and reads the environment above
            from vllm.distributed import cleanup_dist_env_and_memory  # noqa: PLC0415
            from vllm.platforms import current_platform  # noqa: PLC0415

        on_cpu = current_platform.is_cpu()
        check_platform(engine_on_cpu=on_cpu, learner_on_gpu=torch.cuda.is_available())
        if config.deterministic and (capability := current_platform.get_device_capability()) is not None:
            check_repeats(capability.to_int() / 10)
        random_state = torch.get_rng_state()
        arguments = EngineArgs(
            model=str(model_path),
            dtype=dtype,  # pyright: ignore[reportArgumentType]
            seed=seed,
            skip_tokenizer_init=thinking_tags is None,  # vLLM converts the tags to token ids
            reasoning_config=_reasoning(thinking_tags),
            max_model_len=max_model_len,
            trust_remote_code=trust_remote_code,
            weight_transfer_config=_transfer(weight_transfer),
            **engine_settings(config, max_model_len=max_model_len, on_cpu=on_cpu),
        )
        try:
            self._takes_adapters = adapter is not None and _prepare_adapters(arguments, adapter, on_cpu=on_cpu)
            with lasting():
                self._engine = LLMEngine.from_engine_args(arguments)
        except Exception as error:  # code of an untested model may raise anything
            cleanup_dist_env_and_memory()  # as at an engine's end: the next engine of this process needs groups of its own
            if explain(error) is not None:
                raise
            logging.getLogger(__name__).info("vLLM's traceback", exc_info=True)
            reason = " ".join(str(error).split())[:500] or type(error).__name__
            raise UserError(f"vLLM refuses model '{model_path}' or the rollout settings: {reason}") from error
        torch.set_rng_state(random_state)  # starting an engine must not change the run's random stream
        self._on_cpu, self._asleep = on_cpu, False
        self._knows_tags = thinking_tags is not None
        self._in_workers = config.tensor_parallel_size > 1  # vLLM's worker processes
        self._stop_token_ids = list(stop_token_ids(model_path, stop_tokens, trust_remote_code=trust_remote_code))
        self._tied = tied_names(self._engine.model_config.hf_config)
        (self._has_head, *_) = self._engine.apply_model(_has_head)
        self._adapter: Any = None  # a LoRARequest
        self._in_flight: dict[str, str] = {}
        self._num_tokens = self._version = 0

    @property
    def policy_version(self) -> int:
        return self._version

    def submit(self, requests: Sequence[Request], spec: SamplingSpec) -> None:
        from vllm import SamplingParams, TokensPrompt  # noqa: PLC0415
        from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

        for request in requests:
            if request.request_id in self._in_flight:
                raise ValueError(f"request id '{request.request_id}' is already in flight")
            parameters = SamplingParams(
                temperature=spec.temperature,
                top_p=spec.top_p,
                top_k=spec.top_k,
                max_tokens=spec.max_tokens,
                thinking_token_budget=spec.thinking_budget,
                seed=request.seed,
                logprobs=0 if spec.logprobs else None,
                flat_logprobs=True,
                detokenize=False,
                stop_token_ids=self._stop_token_ids,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            prompt = TokensPrompt(prompt_token_ids=list(request.prompt_token_ids))
            internal_id = self._engine.add_request(request.request_id, prompt, parameters, lora_request=self._adapter)
            self._in_flight[request.request_id] = internal_id

    def poll(self) -> list[Completion]:
        if not self._in_flight:
            return []
        finished: list[Completion] = []
        for output in cast(list[Any], self._engine.step()):
            if not output.finished:
                continue
            (sample,) = output.outputs
            token_ids = tuple(sample.token_ids)
            logprobs = tuple(sample.logprobs.logprobs) if sample.logprobs is not None else ()
            if len(logprobs) not in (0, len(token_ids)):
                raise RuntimeError(f"engine returned {len(logprobs)} log-probs for {len(token_ids)} tokens")
            finished.append(
                Completion(
                    request_id=output.request_id,
                    token_ids=token_ids,
                    logprobs=logprobs,
                    finish_reason=sample.finish_reason,
                    policy_version=self._version,
                )
            )
            del self._in_flight[output.request_id]
            self._num_tokens += len(token_ids)
        return finished

    def progress(self) -> int:
        states = self._engine.output_processor.request_states.values()
        return self._num_tokens + sum(
            state.detokenizer.num_output_tokens() for state in states if state.detokenizer is not None
        )

    def abort(self) -> None:
        self._engine.abort_request(list(self._in_flight.values()), internal=True)
        self._in_flight.clear()
        self._engine.step()

    def takes_adapters(self) -> bool:
        return self._takes_adapters

    def unread(self) -> tuple[str, ...]:
        """Return the names of weights that the model has no place for."""
        return () if self._has_head else tuple(self._tied)

    def transfer(self, name: str, payload: dict[str, Any]) -> None:
        """Have the workers take their part in vLLM's weight transfer: the method of this name, with its argument if it has
        one. `update_weights` follows, when all weights are there."""
        self._wake()
        self._engine.collective_rpc(name, args=(payload,) if payload else ())

    def _wake(self) -> None:
        if self._in_flight:
            raise RuntimeError("weights may not change while responses are being sampled")
        if self._asleep:
            self._engine.wake_up()
            self._asleep = False

    def update_weights(
        self, source: Path | Iterable[tuple[str, torch.Tensor]] | None, version: int, adapter: Path | None = None
    ) -> None:
        """`source`: None for the weights that `transfer` has brought."""
        self._wake()
        if source is not None:
            self._reload(read_weights(source) if isinstance(source, Path) else source)
        if self._on_cpu:
            self._engine.apply_model(_pack_experts)
        self._adapter = None if adapter is None else self._added(adapter)
        self.reset_cache()
        self._version = version

    def _reload(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        if self._tied:
            tensors = _with_head(tensors, self._tied) if self._has_head else _without(tensors, self._tied)
        if self._in_workers:
            with as_folder(tensors, self._engine.model_config.dtype) as folder:
                self._engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        else:
            self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors})

    def _added(self, adapter: Path) -> Any:
        """Make the engine read an adapter, in place of the one it has. Returns what requests name it by."""
        from vllm.lora.request import LoRARequest  # noqa: PLC0415

        self._engine.add_lora(LoRARequest("policy", 1, str(adapter), load_inplace=True))
        return LoRARequest("policy", 1, str(adapter))

    def reset_cache(self) -> None:
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("the engine could not reset its prefix cache")

    def sleep(self) -> None:
        if not self._on_cpu:
            # 2 drops all that loading has put on the GPU, for new weights follow; 1 keeps it in main memory: the tags' token
            # ids, which vLLM's sampler has there, too, would not come back
            self._engine.sleep(level=1 if self._knows_tags else 2)
            self._asleep = True

    def close(self) -> None:
        if not hasattr(self, "_engine"):
            return
        self._engine.engine_core.shutdown()
        del self._engine
        gc.collect()


def _prepare_adapters(arguments: Any, adapter: AdapterConfig, *, on_cpu: bool) -> bool:
    """Have vLLM's `arguments` reserve room for the adapter. Returns False, and reserves none, where the adapter is to be
    merged, and where vLLM serves no adapters of this architecture or rank, which is logged; if the config insists on it,
    that is a UserError."""
    if not adapter.wanted_apart(arguments.dtype, on_cpu=on_cpu):
        return False
    if arguments.dtype == "float32" and not on_cpu:  # its kernels compute in 16 bits
        raise UserError("model.adapter.serving=apart: on a GPU it needs model.dtype=bfloat16; or use merged")
    from vllm.config.lora import MaxLoRARanks  # noqa: PLC0415
    from vllm.model_executor.models import supports_lora  # noqa: PLC0415

    model_config = arguments.create_model_config()
    model_class, _ = model_config.registry.resolve_model_cls(model_config.architectures, model_config)
    ranks = [rank for rank in get_args(MaxLoRARanks) if rank >= adapter.rank]
    needs_gpu = on_cpu and model_config.get_num_experts() > 0  # its adapters for experts are GPU code
    targets = adapter.targets or linear_layers(Path(arguments.model))
    packed: Mapping[str, Sequence[str]] = getattr(model_class, "packed_modules_mapping", {})
    in_parts = any(target in packed and target not in packed[target] for target in targets)  # wants them as the parts' names
    if not supports_lora(model_class) or not ranks or needs_gpu or in_parts:
        what = f"rank {adapter.rank}" if not ranks else model_config.architectures[0]
        if adapter.serving == "apart":
            raise UserError(f"model.adapter.serving=apart: vLLM serves no adapters of {what}; use merged")
        logging.getLogger("conclip").warning("vLLM serves no adapters of %s: the engine gets merged weights", what)
        return False
    arguments.enable_lora, arguments.max_loras, arguments.max_lora_rank = True, 1, ranks[0]
    # Without them, vLLM also makes room for adapters of the embedding, the output head and every expert.
    arguments.lora_target_modules = targets
    return True


def engine_settings(config: RolloutConfig, *, max_model_len: int, on_cpu: bool) -> dict[str, Any]:
    """Return the arguments of vLLM's engine that follow from the rollout settings and the platform."""
    shared: dict[str, Any] = {
        "load_format": "safetensors",  # never a pickle
        "generation_config": "vllm",
        "max_num_seqs": config.max_num_seqs,
        "tensor_parallel_size": config.tensor_parallel_size,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        "gpu_memory_utilization": config.gpu_memory_utilization or 0.9,  # settled before a run that trains
    }
    if not on_cpu:
        return shared | {
            "enable_chunked_prefill": True,
            "max_num_batched_tokens": config.max_num_batched_tokens,
            "enforce_eager": config.enforce_eager,
            "enable_sleep_mode": True,
        }
    return shared | {
        # With a chunked prompt vLLM rewinds a per-request random generator, which CPU generators cannot do: on a CPU one
        # step holds the longest prompt.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(config.max_num_batched_tokens, max_model_len),
        "enforce_eager": True,
        "kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30),
        # Only whole blocks of a prompt are shared. vLLM's own 128 on a CPU exceed most prompts, each of which it would then
        # compute again for every response.
        "block_size": 32,
    }


def tied_names(hf_config: Any) -> dict[str, str]:
    """Return the tied weights, each by name with the name of its source: the output head of a model that ties it to the
    embedding. Empty for a model without tied weights."""
    import transformers  # noqa: PLC0415

    if not getattr(hf_config, "tie_word_embeddings", False):
        return {}
    for name in hf_config.architectures or []:
        names = getattr(getattr(transformers, name, None), "_tied_weights_keys", None)
        if isinstance(names, dict):
            return cast(dict[str, str], names)
    return {"lm_head.weight": "model.embed_tokens.weight"}


def _with_head(tensors: Iterable[tuple[str, torch.Tensor]], tied: dict[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Add the output head that a checkpoint with tied embeddings omits: a reload does not tie it, and the engine would keep
    sampling with the old head."""
    missing, sources = dict(tied), {source: torch.empty(0) for source in tied.values()}
    for name, tensor in tensors:
        if name in sources:
            sources[name] = tensor
        missing.pop(name, None)
        yield name, tensor
    for name, source in missing.items():
        if not sources[source].numel():
            raise RuntimeError(f"new weights without '{source}': the engine's output head cannot be updated")
        yield name, sources[source]


def _without(tensors: Iterable[tuple[str, torch.Tensor]], names: Container[str]) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, tensor) for name, tensor in tensors if name not in names)


def _has_head(model: torch.nn.Module) -> bool:
    """Return whether vLLM's model has an output head of its own. Some models use the tied embedding instead (Gemma 2)."""
    return hasattr(model, "lm_head")


def _pack_experts(model: torch.nn.Module) -> None:
    """Pack the new weights of a mixture of experts for vLLM's CPU kernels. vLLM does so when it loads a model, but not when
    it reloads weights: its kernels would then misread the experts."""
    for module in model.modules():
        kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
        if kernel is not None:
            kernel.fused_experts.process_weights_after_loading(module)


def _transfer(backend: str | None) -> Any:
    """Return vLLM's settings for its weight transfer; None without one."""
    if backend is None:
        return None
    from vllm.config import WeightTransferConfig  # noqa: PLC0415

    return WeightTransferConfig(backend=backend)


def _reasoning(tags: ThinkingTags | None) -> Any:
    """Return vLLM's settings for thinking budgets; None without tags."""
    if tags is None:
        return None
    from vllm.config import ReasoningConfig  # noqa: PLC0415

    return ReasoningConfig(reasoning_start_str=tags.open, reasoning_end_str=tags.close)


def stop_token_ids(model_path: Path, named: Sequence[str] = (), *, trust_remote_code: bool = False) -> tuple[int, ...]:
    """Return every token that ends a response: the end tokens of the generation config, else of the model config; that of
    the tokenizer; the token with which the chat template ends a turn, where none of them does (they may still be the base
    model's); and those that the user has `named`."""
    from transformers import AutoConfig, GenerationConfig  # noqa: PLC0415

    ids: set[int] = set()
    if (model_path / "generation_config.json").exists():
        end = GenerationConfig.from_pretrained(model_path).eos_token_id
        ids.update([end] if isinstance(end, int) else end or [])
    if not ids:
        end = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code).eos_token_id
        ids.update([end] if isinstance(end, int) else end or [])
    tokenizer = load_tokenizer(model_path, trust_remote_code=trust_remote_code)
    ids.update([tokenizer.eos_token_id] if isinstance(tokenizer.eos_token_id, int) else [])
    turn = end_of_turn(tokenizer)
    if not ids.intersection(turn):
        ids.update(turn[:1])
    return tuple(sorted(ids.union(named_tokens(tokenizer, named, "model.stop_tokens"))))
