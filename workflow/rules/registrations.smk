"""Registration. In: the scans of a batch and their tissue. Out: maps between the scans of each specimen, with errors."""


rule register_scans:
    """Lay the scans of each specimen of a batch onto its reference scan."""
    input:
        script=scripts("register_scans.py"),
        modules=[
            scripts("isoslide/registration.py"),
            scripts("isoslide/registration_coarse.py"),
            scripts("isoslide/registration_quality.py"),
            scripts("isoslide/registration_specimen.py"),
            scripts("isoslide/registration_warp.py"),
            scripts("isoslide/slide.py"),
        ],
        checks="results/status/checks/{batch}.tsv",
        tissue="results/status/tissue/{batch}.tsv",
    output:
        "results/status/registrations/{batch}.tsv",
    log:
        "results/logs/register_scans/{batch}.log",
    benchmark:
        "results/benchmarks/register_scans/{batch}.tsv"
    conda:
        "../../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: 4000 * attempt,
        runtime=lambda wc, attempt: 120 * attempt,
    params:
        settings=json.dumps(config["registration"]),
    shell:
        """
        python {input.script:q} \
            --checks {input.checks:q} \
            --tissue {input.tissue:q} \
            --settings {params.settings:q} \
            --results results/registrations \
            --threads {threads} \
            --output {output:q} &>{log:q}
        """
