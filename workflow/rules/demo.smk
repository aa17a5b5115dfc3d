"""The demo cohort. In: one real slide. Out: simulated scans of simulated specimens, and their manifest."""


rule make_demo:
    """Render the demo specimens on four simulated scanners."""
    input:
        script=scripts("make_demo.py"),
        modules=[
            scripts("isoslide/demo.py"),
            scripts("isoslide/demo_tissue.py"),
            scripts("isoslide/demo_scanners.py"),
            scripts("isoslide/demo_slides.py"),
        ],
        slide=ancient(at_base("resources/CMU-1-Small-Region.svs")),
    output:
        "results/demo/manifest.tsv",
    log:
        "results/logs/make_demo.log",
    benchmark:
        "results/benchmarks/make_demo.tsv"
    conda:
        "../../envs/base.yaml"
    threads: 4
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        specimens=sorted(
            set(SHEET[SHEET["path"].str.startswith(sheet.DEMO_SLIDES)]["specimen"])
        ),
    shell:
        """
        python {input.script:q} \
            --slide {input.slide:q} \
            --folder results/demo/slides \
            --specimens {params.specimens:q} \
            --threads {threads} \
            --output {output:q} &>{log:q}
        """
