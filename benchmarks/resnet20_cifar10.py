"""How well, how fast and in how much memory is a real ResNet20 represented?

    python benchmarks/resnet20_cifar10.py

Prints one row per setting: the accuracy of the rebuilt classifier on all 10,000
CIFAR-10 test images, its drop against the original, the agreement of the two, the
seconds from the start of the process to the rebuilt classifier (imports, data,
permutations and both phases included), the peak of the process's memory, and how much
of it came in the second half of the distillation. Mean and standard deviation over
seeds; each run is a process of its own. The test images are seen by no fit.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

START = time.perf_counter()

# setting: (hidden_size, permutation)
SETTINGS = {
    "h=160, cross-filter": (160, "cross_filter"),
    "h=180, cross-filter": (180, "cross_filter"),
    "h=160, in-filter": (160, "in_filter"),
}
COLUMNS = {
    "accuracy, %": ("accuracy", 2),
    "drop, points": ("drop", 2),
    "agreement, %": ("agreement", 2),
    "seconds": ("seconds", 0),
    "peak MB": ("peak_mb", 0),
    "growth MB": ("growth_mb", 0),
}


def main():
    """Runs all settings, or with --run the one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import cifar10

    cifar10.add_arguments(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--reconstruction-steps", type=int, default=6000)
    parser.add_argument("--distillation-steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64, help="images per distillation step")
    parser.add_argument("--no-mixup", action="store_true", help="flip and shift the images only")
    parser.add_argument("--jit-compile", action="store_true", help="compile the steps by XLA")
    parser.add_argument(
        "--results", type=pathlib.Path, help="append each run to this JSON lines file"
    )
    parser.add_argument("--run", nargs=2, metavar=("SETTING", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        setting, seed = options.run
        print(json.dumps(run(cifar10, options, setting, int(seed))))
        return
    table(options)


def table(options):
    """Runs every setting with every seed and prints the table as it grows."""
    header = ["setting", "predictor", "n", *COLUMNS]
    print("| " + " | ".join(header) + " |")
    print("|" + " --- |" * len(header), flush=True)
    for setting in options.settings:
        runs = [_subprocess(options, setting, seed) for seed in options.seeds]
        cells = [setting, f"{runs[0]['predictor_parameters']:,}", str(len(runs))]
        for name, digits in COLUMNS.values():
            values = [one[name] for one in runs]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
        print("| " + " | ".join(cells) + " |", flush=True)


def _subprocess(options, setting, seed):
    command = [sys.executable, __file__, *sys.argv[1:], "--run", setting, str(seed)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    if options.results:
        with options.results.open("a") as file:
            file.write(json.dumps(result) + "\n")
    return result


def run(cifar10, options, setting, seed):
    """One fit from nothing, and its figures."""
    import keras

    import keras_nern

    hidden_size, permutation = SETTINGS[setting]
    keras.utils.set_random_seed(seed)
    images, _ = cifar10.load(options.data_dir, "train")
    dataset = cifar10.augmented(images, options.batch_size, seed, mixup=not options.no_mixup)
    base = keras_nern.models.resnet_cifar(20)
    keras_nern.models.load_torch_weights(base, options.weights / "cifar10_resnet20.npz")
    nern = keras_nern.NeRNModel(base, hidden_size=hidden_size, permutation=permutation)
    nern.compile(
        reconstruction_steps=options.reconstruction_steps,
        jit_compile=options.jit_compile or "auto",
    )
    memory = []
    sample = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: memory.append(_resident_mb())
    )
    nern.fit(dataset, steps_per_epoch=options.distillation_steps, verbose=0, callbacks=[sample])
    rebuilt = nern.reconstruct()
    seconds = time.perf_counter() - START

    peak = _peak_mb()
    images, labels = cifar10.load(options.data_dir, "test")
    base_classes = base.predict(images, batch_size=500, verbose=0).argmax(axis=1)
    accuracy, agreement = cifar10.accuracy_and_agreement(rebuilt, base_classes, images, labels)
    original = (base_classes == labels).mean()
    return {
        "setting": setting,
        "seed": seed,
        "predictor_parameters": nern.predictor.count_params(),
        "accuracy": 100 * accuracy,
        "drop": 100 * (original - accuracy),
        "agreement": 100 * agreement,
        "seconds": seconds,
        "peak_mb": peak,
        "growth_mb": memory[-1] - memory[len(memory) // 2],
    }


def _resident_mb():
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def _peak_mb():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
