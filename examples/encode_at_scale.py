"""Embeds the texts in parquet files, or fills their gaps, on one or many machines with Ray Data.

pip install 'ray[data]>=2.60'
python examples/encode_at_scale.py --input texts/ --output vectors/ --workers 4
python examples/encode_at_scale.py --task infill --input stories/ --output filled/ --workers 8 --gpus_per_worker 1

Rows have a unique `id` and a `text`; the output has the same rows and `embedding` (float32) or `filled`. On a cluster,
start this on its head node, with paths that all machines can read (a shared folder, `s3://...`).

Rows are finished in groups of --rows_per_file: each is a file of the output, and its ids are listed in --done. A
worker that dies is replaced and its group done again. After anything worse (a killed job, a lost machine), repeat the
command: finished groups are skipped, and a half-written file is removed. New files of the input are added the same way.
"""

import argparse

import pyarrow
import pyarrow.dataset
import ray
import torch
from ray.data.checkpoint import CheckpointConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from magnet_hub.fetch import shipped_checkpoint


class Worker:
    """A process that holds the model and receives tables of rows."""

    def __init__(self, model: str, batch_size: int):
        import modeling_magnet  # noqa: F401 - registers its classes in this process

        device = "cuda" if torch.cuda.is_available() else "cpu"  # Ray shows a worker only its own GPUs
        self.model = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False).eval().to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        self.batch_size = batch_size


class Encoder(Worker):
    def __call__(self, rows: pyarrow.Table) -> pyarrow.Table:
        texts = rows["text"].to_pylist()
        vectors = self.model.encode(texts, self.tokenizer, batch_size=self.batch_size, show_progress_bar=False)
        column = pyarrow.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
        return rows.append_column("embedding", column)


class Infiller(Worker):
    def __call__(self, rows: pyarrow.Table) -> pyarrow.Table:
        filled = self.model.infill(rows["text"].to_pylist(), self.tokenizer, batch_size=self.batch_size)
        return rows.append_column("filled", pyarrow.array(filled))


TASKS = {"encode": Encoder, "infill": Infiller}


def check_ids(folder: str) -> None:
    """If rows shared an id, a repeated command would skip all of them once one is done."""
    ids = pyarrow.dataset.dataset(folder).to_table(columns=["id"])["id"]
    if ids.null_count or len(ids.unique()) < len(ids):
        raise ValueError(
            f"--input {folder}: `id` is not unique, or missing in some rows. Give each row an id of its own."
        )


def check_cpus(workers: int) -> None:
    """Workers that hold all of Ray's CPUs would wait forever for texts, which nobody could read."""
    ray.init(ignore_reinit_error=True)
    cpus, needed = int(ray.cluster_resources().get("CPU", 0)), workers + 2
    if cpus < needed:
        raise ValueError(
            f"--workers {workers}: these, reading and skipping what is done take {needed} CPUs, but Ray has {cpus}. Start "
            f"fewer, or tell Ray that it has more, which it only counts: ray start --head --num-cpus {needed}"
        )


def process(
    worker: type,
    folder: str,
    output: str,
    done: str,
    model: str,
    workers: int,
    gpus: float,
    rows: int,
    batch_size: int,
) -> None:
    """Passes all rows that are not listed in `done` through workers, and writes them to `output`."""
    check_ids(folder)
    check_cpus(workers)
    settings = ray.data.DataContext.get_current()
    settings.checkpoint_config = CheckpointConfig("id", done, delete_checkpoint_on_success=False)
    texts = ray.data.read_parquet(folder, num_cpus=0.1).repartition(target_num_rows_per_block=rows)
    results = texts.map_batches(
        worker,
        fn_constructor_args=(model, batch_size),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=gpus,
    )
    results.write_parquet(output, ray_remote_args={"num_cpus": 0.1})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="encode")
    parser.add_argument("--model", help="default: magnet-smollm2-135m, which is fetched the first time")
    parser.add_argument("--input", required=True, help="a folder of parquet files, absolute or a URI")
    parser.add_argument("--output", required=True, help="a folder, absolute or a URI")
    parser.add_argument("--done", help="where finished ids are listed; default: <output>.done")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--gpus_per_worker", type=float, default=0)
    parser.add_argument("--rows_per_file", type=int, default=4096)
    parser.add_argument("--batch_size", type=int, default=32)
    args = parser.parse_args()
    done = args.done or args.output.rstrip("/") + ".done"
    model = args.model or str(shipped_checkpoint())
    worker, size = TASKS[args.task], (args.workers, args.gpus_per_worker, args.rows_per_file, args.batch_size)
    process(worker, args.input, args.output, done, model, *size)


if __name__ == "__main__":
    main()
