"""What it costs the first process to deal requests out to engines and to collect what they finish.

    python benchmarks/scheduling.py --engines 2

256 responses of the embedded model, five rounds. The share is that of this process's processor time in the time by the
clock: what it does while it waits for engines counts as nothing. Grading is left out.
"""

import argparse
import dataclasses
import time
from statistics import median

from conclip.config.compose import load_config
from conclip.experiments.inputs import load_inputs
from conclip.models.folder import LAB_MODEL
from conclip.rollout.collect import TRAINING, tasks_for
from conclip.rollout.pool import EnginePool
from conclip.rollout.session import encode_prompts
from conclip.types import SamplingSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, default=2)
    options = parser.parse_args()
    config = load_config("train-phase2", "phase.num_problems=16", "data.pool.chain.num_problems=16")
    inputs = load_inputs(config)
    prompts = encode_prompts(config, inputs.model_path, inputs.problems)
    spec = SamplingSpec(temperature=1.0, max_tokens=512)
    rollout = dataclasses.replace(config.rollout, num_engines=options.engines, kv_cache_gib=0.5)
    pool = EnginePool(LAB_MODEL, rollout, dtype="float32", seed=0, max_model_len=1024)
    print("| round | s | tokens | share |\n|---:|---:|---:|---:|")
    shares: list[float] = []
    for number in range(6):
        tasks = tasks_for(inputs.pool[:16], prompts.by_variant[TRAINING], 16, (number, "scheduling"), spec)
        pool.reset_cache()
        began, used, tokens, done = time.monotonic(), time.process_time(), 0, 0
        pool.submit([task.request for task in tasks], spec)
        while done < len(tasks):
            finished = pool.poll()
            done += len(finished)
            tokens += sum(completion.num_tokens for completion in finished)
        seconds = time.monotonic() - began
        share = (time.process_time() - used) / seconds
        if number:  # the first warms up
            shares.append(share)
            print(f"| {number} | {seconds:.1f} | {tokens} | {100 * share:.1f} % |", flush=True)
    print(f"median {100 * median(shares):.1f} %")
    pool.close()


if __name__ == "__main__":
    main()
