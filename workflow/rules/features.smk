"""Features. In: the tiles of a batch and one encoder, or files made elsewhere. Out: per scan a features file, status per
batch."""


rule extract_features:
    """Encode the tiles of a batch of scans with one encoder."""
    input:
        script=scripts("extract_features.py"),
        modules=[
            scripts("isoslide/encoders.py"),
            scripts("isoslide/networks.py"),
            scripts("isoslide/key_maps.py"),
            scripts("isoslide/tile_encoder.py"),
            scripts("isoslide/extraction.py"),
            scripts("isoslide/pace.py"),
            scripts("isoslide/features_file.py"),
            scripts("isoslide/slide.py"),
            scripts("isoslide/slide_files.py"),
            scripts("isoslide/stains.py"),
            scripts("isoslide/stored_tiles.py"),
            scripts("isoslide/jpeg_tiles.py"),
            scripts("isoslide/tiff_levels.py"),
            scripts("isoslide/dicom_levels.py"),
            scripts("isoslide/openslide_fast.py"),
            scripts("isoslide/icc.py"),
            scripts("isoslide/staging.py"),
        ],
        checks="results/status/checks/{batch}.tsv",
        tiles=tiles_of_encoder,
        gate=gate_of_encoder,
        weights=weights_of_encoder,
        registry=ancient(REGISTRY_FILE),
    output:
        status="results/status/features/{encoder}/{batch}.tsv",
        speed="results/benchmarks/extract_features/{encoder}/{batch}.json",
    log:
        "results/logs/extract_features/{encoder}/{batch}.log",
    benchmark:
        "results/benchmarks/extract_features/{encoder}/{batch}.tsv"
    wildcard_constraints:
        encoder=one_of(ALONE),
    conda:
        environment_of_encoder
    threads: 8 if config["device"] == "cuda" else 1  # on a busy CPU one thread a job wastes least
    resources:
        mem_mb=lambda wc, attempt: 16000 * attempt,
        runtime=lambda wc, attempt: 240 * attempt * len(encoders_of_job(wc)),
        gpu=1 if config["device"] == "cuda" else None,
    params:
        encoders=encoders_of_job,
        entries=lambda wc: json.dumps(
            [REGISTRY[name].defining() for name in encoders_of_job(wc)]
        ),
        results=lambda wc: [f"results/features/{name}" for name in encoders_of_job(wc)],
        weights=config["weights"],
        device=config["device"],
        reading=json.dumps(config["reading"]),
        staging=json.dumps(config["staging"]),
        batch_size=256 if config["device"] == "cuda" else 4,
    shell:
        """
        python {input.script:q} \
            --checks {input.checks:q} \
            --tiles {input.tiles:q} \
            --encoder {params.encoders:q} \
            --registry {input.registry:q} \
            --weights {params.weights:q} \
            --device {params.device} \
            --threads {threads} \
            --batch-size {params.batch_size} \
            --reading {params.reading:q} \
            --staging {params.staging:q} \
            --results {params.results:q} \
            --speed {output.speed:q} \
            --output {output.status:q} &>{log:q}
        """


use rule extract_features as extract_together with:
    output:
        status="results/status/features_together/{tile}/{batch}.tsv",
        speed="results/benchmarks/extract_together/{tile}/{batch}.json",
    log:
        "results/logs/extract_together/{tile}/{batch}.log",
    benchmark:
        "results/benchmarks/extract_together/{tile}/{batch}.tsv"
    wildcard_constraints:
        tile=one_of(TOGETHER),


rule import_features:
    """Check features that were made elsewhere, pair the scans of each specimen and write them as our own."""
    input:
        script=scripts("import_features.py"),
        modules=[
            scripts("isoslide/features_file.py"),
            scripts("isoslide/foreign_features.py"),
            scripts("isoslide/importing.py"),
            scripts("isoslide/imports.py"),
            scripts("isoslide/pairing.py"),
            scripts("isoslide/registration_warp.py"),
        ],
        sheet=ancient(config["sheet"]),
        slides=registrations_of_import,
    output:
        "results/status/features/{encoder}/{batch}.tsv",
    log:
        "results/logs/import_features/{encoder}/{batch}.log",
    benchmark:
        "results/benchmarks/import_features/{encoder}/{batch}.tsv"
    wildcard_constraints:
        encoder=one_of(IMPORTED),
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: 4000 * attempt,
        runtime=lambda wc, attempt: 60 * attempt,
    params:
        scans=scans_of_batch,
        rows=rows_of_import,
        settings=lambda wc: json.dumps(config["import"][wc.encoder]),
        paired=lambda wc: (
            f"--checks results/status/checks/{wc.batch}.tsv --registrations results/registrations"
            if wc.encoder in REGISTERED
            else ""
        ),
    shell:
        """
        python {input.script:q} \
            --sheet {input.sheet:q} \
            --scans {params.scans:q} \
            --name {wildcards.encoder:q} \
            --settings {params.settings:q} \
            {params.paired} \
            --results results/features/{wildcards.encoder:q} \
            --output {output:q} &>{log:q}
        """
