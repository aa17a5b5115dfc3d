"""Jobs that want more than they were given the first time, a job that wants a GPU, and one to be killed."""


rule all:
    input:
        "memory.txt",
        "time.txt",
        "gpu.txt",
        "no_gpu.txt",


rule memory:
    """Holds 700 MB for a few seconds."""
    output:
        "memory.txt",
    resources:
        mem_mb=lambda wc, attempt: 500 * attempt,
    shell:
        """
        python -c "import time; held = bytearray(b'1') * 700_000_000; time.sleep(5)"
        echo {resources.mem_mb} >{output}
        """


rule time:
    """Takes five minutes if it has one, and no time if it has two."""
    output:
        "time.txt",
    resources:
        runtime=lambda wc, attempt: attempt,
    shell:
        """
        if [ {resources.runtime} = 1 ]; then sleep 300; fi
        echo {resources.runtime} >{output}
        """


rule gpu:
    """Says which GPU it was given, and where."""
    output:
        "gpu.txt",
    resources:
        gpu=1,
        slurm_partition="gpu",
    shell:
        """
        echo "$SLURMD_NODENAME $CUDA_VISIBLE_DEVICES" >{output}
        """


rule no_gpu:
    output:
        "no_gpu.txt",
    shell:
        """
        echo "$SLURMD_NODENAME ${{CUDA_VISIBLE_DEVICES-none}}" >{output}
        """
