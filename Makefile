# Shortcuts for people who work on vfm. The README's two commands need no make.
.PHONY: test check format docs docs-serve packages kill-test flip-test oracle-test ledger-test fuzz fuzz-coverage kernels-wide gpu-tests gpu-first rehearsal step-lint notebooks test-portable test-oldest test-newest test-torch-latest release

# `uv run` alone installs what vfm needs; its tests and tools are in the development group.
RUN := uv run --dev
ALL_OF := $(RUN) pytest -m "" # pytest alone leaves out slow tests

test: ## all that CI runs
	$(ALL_OF) -n 3

check: ## style, types, architecture
	$(RUN) ruff format --check . && $(RUN) ruff check . && $(RUN) mypy && $(RUN) lint-imports

format:
	$(RUN) ruff format . && $(RUN) ruff check --fix .

docs: ## the documentation site, build/site/html/index.html; warnings are errors
	uv run --group docs python docs/site/build.py

docs-serve: ## the same at localhost:8000, where its search works
	uv run --group docs python docs/site/build.py --serve

packages: ## every package's own tests, alone in an environment of its own
	for package in core kernels curation eva clip diva; do \
		uv run --isolated --package vfm-$$package pytest -m "" packages/$$package || exit 1; done

release: ## six wheels and six sdists in dist/, checked by twine and in clean environments; uploads nothing
	rm -rf dist
	uv build --all-packages --out-dir dist
	VFM_RELEASE=dist $(ALL_OF) tests/test_wheels.py

VFM_NUM_KILLS ?= 20
kill-test: ## SIGTERM, SIGINT and SIGKILL at random moments of a recipe with every kind of stage, in 1 and in 2 processes
	VFM_NUM_KILLS=$(VFM_NUM_KILLS) $(ALL_OF) tests/test_kill_and_resume.py -s

flip-test: ## a thousand flipped bits in checkpoints, models and files of a store, with a table (minutes)
	VFM_NUM_FLIPS=1000 $(ALL_OF) packages/core/tests/test_bit_flips.py -s

oracle-test: ## damage whose effect is known: samples put in = samples read + samples counted, with a table
	$(ALL_OF) packages/core/tests/test_data_oracle.py -s

ledger-test: ## 10,000 layouts of data, and the units of each use in their ledgers, of which none is missing (minutes)
	VFM_NUM_LAYOUTS=10000 $(ALL_OF) packages/core/tests/test_data_ledger.py -s

fuzz: ## 5,000 damaged files of every kind and what became of them, docs/faults.md (half an hour; resumes what was stopped)
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(RUN) python -m fuzz --cases 5000 --jobs 2 --resume .fuzz.jsonl --out docs/faults.md

fuzz-coverage: ## libFuzzer by coverage on the readers of tars, COCO's json, tables and lists of videos, ten minutes each
	for reader in tar coco csv jsonl images videos clips; do PYTHONPATH=tests OMP_NUM_THREADS=1 $(RUN) --with atheris python -m fuzz.coverage $$reader --seconds 600 || exit 1; done

rehearsal: ## which code each arm of the kernels' benchmark runs, and each planted fault, in Triton's interpreter (minutes)
	$(RUN) python packages/kernels/benchmarks/rehearsal.py

step-lint: ## a table of waits for the GPU in a step of every training, without a GPU (minutes)
	PYTHONPATH=tests $(RUN) python -m step_lint

kernels-wide: ## Triton's interpreter at real shapes, five architectures, every op and training step by inductor (minutes)
	TRITON_INTERPRET=1 $(RUN) pytest packages/kernels/tests/interpreter -m slow -n 2
	VFM_WIDE=1 $(ALL_OF) packages/kernels/tests/test_aot.py packages/kernels/tests/test_benchmarks.py -n 2

gpu-tests: ## the kernels' tests on a GPU, also under compute-sanitizer (needs the CUDA toolkit; an hour)
	$(RUN) pytest packages/kernels/tests/gpu
	for tool in memcheck racecheck; do \
		compute-sanitizer --tool $$tool --error-exitcode 1 $(RUN) python -m pytest packages/kernels/tests/gpu \
			-k "float64 and float16 and (65 or 257)" || exit 1; done

gpu-first: ## all that the first hour on a GPU is for, in parts of at most 8 minutes; repeat it to go on; results in $$OUT or beside the benchmarks
	$(RUN) python packages/kernels/benchmarks/gpu_first.py $(ARGS)

# Tests that compare floating-point numbers. ATEN_CPU_CAPABILITY stands in for other processors. Where four threads share
# fewer cores, spinning at each barrier took ten times as long as waiting.
NUMERICAL_kernels := $(wildcard packages/kernels/tests/test_*.py)
NUMERICAL_kernels := $(filter-out $(addprefix %test_, aot.py interpreter.py benchmarks.py launch.py choosing.py measured.py), \
	$(NUMERICAL_kernels))
NUMERICAL_core := $(wildcard $(addprefix packages/core/tests/test_, models_*.py train_dist.py train_lamb.py train_optim.py \
	train_task.py train_kernels.py eval_metrics.py eval_probes.py data_images.py))
NUMERICAL_clip := $(wildcard $(addprefix packages/clip/tests/test_, accumulation.py losses.py clip_kernels.py clip_padding.py open_clip.py \
	towers.py text_tower.py diagnosis.py training_data.py))
NUMERICAL_eva := $(wildcard $(addprefix packages/eva/tests/test_, accumul*.py eva_kernels.py eva_padding.py targets.py task.py visible.py \
	init.py eva_finetune.py))
NUMERICAL_diva := $(wildcard $(addprefix packages/diva/tests/test_, condition.py control.py denoiser.py export*.py diva_families.py \
	latents.py low_rank.py diva_padding.py prior.py processes.py surprises.py tune.py))

test-portable: ## numerical tests as on other processors: three vector widths, 1 and 4 threads (about an hour)
	failed=0; for processor in default/Nehalem avx2/Haswell avx512/SkylakeX; do for threads in 1 4; do \
		export ATEN_CPU_CAPABILITY=$${processor%/*} OPENBLAS_CORETYPE=$${processor#*/} OMP_NUM_THREADS=$$threads; \
		for tests in "$(NUMERICAL_kernels)" "$(NUMERICAL_core)" "$(NUMERICAL_clip)" "$(NUMERICAL_eva)" "$(NUMERICAL_diva)"; do \
			echo "$$processor, $$threads threads"; \
			OMP_WAIT_POLICY=passive $(RUN) pytest $$tests || failed=1; \
	done; done; done; exit $$failed

notebooks: ## run the notebooks and save what they show
	VFM_SAVE_NOTEBOOKS=1 $(ALL_OF) tests/test_notebooks.py -k prints

# Another resolution would rewrite uv.lock, so these work in a copy, in an environment of its own (some GB in uv's cache).
PACKAGE ?= core
TESTS ?= packages/$(PACKAGE)
build/%: FORCE
	rm -rf $@ && mkdir -p $@
	git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t $@
FORCE:

test-oldest: build/oldest ## tests of a package with the oldest dependencies that it allows: PACKAGE=clip, TESTS=packages/clip/tests/test_losses.py
	cd $< && uv run --isolated --resolution lowest-direct --package vfm-$(PACKAGE) pytest -m "" $(TESTS)

test-newest: build/newest ## the same with the newest; but for torch and NumPy, whose pins [tool.uv] in pyproject.toml explains
	sed -i '/^exclude-newer/d' $</pyproject.toml
	cd $< && uv run --isolated --package vfm-$(PACKAGE) pytest -m "" $(TESTS)

test-torch-latest: ## the kernels' tests on the newest torch and Triton, in an environment of their own (some GB)
	uv run --isolated --no-project --no-config --with torch --with triton --with pytest --with pytest-timeout \
		--with pytest-xdist --with hypothesis \
		--with-editable "packages/core[torch,report]" --with-editable packages/kernels \
		--with-editable packages/eva --with-editable packages/clip \
		pytest -m "" -n 2 -rx packages/kernels --ignore packages/kernels/tests/test_xformers.py packages/core/tests/test_train_kernels.py \
		packages/eva/tests/test_eva_kernels.py packages/eva/tests/test_eva_padding.py \
		packages/clip/tests/test_clip_kernels.py packages/clip/tests/test_clip_padding.py
