"""The error catalogue: every failure a user can meet has a code, the facts and the next step.

Codes are stable. Ranges: E1xx job, parameters and site files; E2xx data; E3xx federation and
protocol; E4xx models and training; E5xx engine and environment; E6xx privacy; E7xx texts that models make;
E8xx FATE Flow.

Usage::

    raise ExtensionError("E302", party="host 10000", got=4812, expected=5000)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ErrorKind:
    """One entry of the catalogue.

    Attributes:
        problem: what is wrong, a ``str.format`` template.
        next_step: what to do about it, likewise.
        shared: whether other parties may read the text: it holds no path, no name of a table or model, no row.
    """

    problem: str
    next_step: str
    shared: bool = False


CATALOGUE: dict[str, ErrorKind] = {
    # E1xx - job, parameters, site files ---------------------------------------------------------
    "E100": ErrorKind(
        "Cannot read the job {path}: {reason}.", "Give a FATE DAG YAML (kind: fate, schema_version: 2.2.0)."
    ),
    "E101": ErrorKind("The key {key!r} is given twice in one mapping.", "Keep one of them."),
    "E102": ErrorKind("Unknown key {key!r}; known here: {known}.{hint}", "Rename or remove it."),
    "E103": ErrorKind("Expected {expected}, got {got}.", "Write {expected} here."),
    "E104": ErrorKind("{key} is {got!r}, supported: {expected!r}.", "Set {key}: {expected}."),
    "E105": ErrorKind(
        "Cannot apply --set {text}: {reason}.", "Use a path of the job, e.g. tasks.fedmkt_0.parameters.rounds=2."
    ),
    "E106": ErrorKind(
        "{party} is not a party of this job (parties: {known}).", "Add it under dag.parties or correct the name."
    ),
    "E107": ErrorKind("{party} is listed {count} times.", "List each party once."),
    "E108": ErrorKind("The role {role!r} is listed without a party id.", "Give its party ids or remove the entry."),
    "E109": ErrorKind(
        "The job {path} has {count} problem(s): {problems}", "Run `fate-llm-ext check` and correct them."
    ),
    "E110": ErrorKind(
        "{name!r} is not under `{kind}` in this party's site file (it has: {known}).",
        "Add `{kind}: {{{name}: <path>}}` to the site file.",
    ),
    "E111": ErrorKind("`{kind}: {name}` of the site file points to {path}, which does not exist.", "Correct the path."),
    "E112": ErrorKind("Cannot read the site file {path}: {reason}.", "Give a YAML file (option --sites)."),
    "E113": ErrorKind("The site file {path} has {count} problem(s): {problems}.", "Correct them."),
    "E114": ErrorKind(
        "The site file {path} has no section for {party} (it has: {known}).", "Add a section named {party}."
    ),
    "E115": ErrorKind("No component is named {name!r}.{hint}", "See `fate-llm-ext desc` for the installed ones."),
    "E116": ErrorKind(
        "{component} has no stage {stage!r} (it has: {known}).", "Set `stage` of the task or of the dag."
    ),
    "E117": ErrorKind("{component} has no part for {party} (its roles: {known}).", "Remove this party from the task."),
    "E118": ErrorKind(
        "{component} ({stage}) needs {needed}; this task has {have}.", "Add such a party under dag.parties."
    ),
    "E119": ErrorKind(
        "Unknown parameter {name!r} of {component}.{hint}",
        "`fate-llm-ext desc {component}` lists them.",
    ),
    "E120": ErrorKind(
        "{value!r} is not valid: {reason}.", "Correct it; `fate-llm-ext desc {component}` gives type and range."
    ),
    "E121": ErrorKind("The required parameter is missing for {party}.", "Add it; see `fate-llm-ext desc {component}`."),
    "E122": ErrorKind(
        "{component} ({stage}) has no {kind} input {name!r} (it has: {known}).{hint}", "Rename or remove it."
    ),
    "E123": ErrorKind(
        "{component} ({stage}) needs the {kind} input {name!r} for {party}; nothing gives it.", "Add a source."
    ),
    "E124": ErrorKind("No task is named {name!r}.{hint}", "Name a task of this job (it has: {known})."),
    "E125": ErrorKind(
        "{task} ({stage}) gives no output {name!r} for {party} (it gives: {known}).{hint}", "Correct the key."
    ),
    "E126": ErrorKind("{name!r} takes {expected}, the linked output is {got}.", "Link an output of the same type."),
    "E127": ErrorKind("The tasks wait for each other in a circle: {cycle}.", "Remove one of these links."),
    "E128": ErrorKind(
        "The plug-in {name!r} cannot be imported: {reason}.", "Repair its installation; FATE would hide this."
    ),
    "E129": ErrorKind("The parameters do not fit together: {reason}.", "See `fate-llm-ext desc {component}`."),
    "E130": ErrorKind("More than one source is given for {party}, {name!r} takes one.", "Keep one source per party."),
    # E2xx - data ---------------------------------------------------------------------------------
    "E131": ErrorKind(
        "The LLM {name!r} is under {count} of `models`, `endpoints` and `recordings` in this party's site file (they "
        "have: {known}).",
        "Add it under exactly one of them: `models: {{{name}: <path>}}` or `endpoints: {{{name}: {{url: <url>}}}}`.",
    ),
    "E201": ErrorKind("{path} does not exist.", "Check the path.{hint}"),
    "E202": ErrorKind(
        "{path}: files of the kind {suffix!r} are not known.", "Give one of {known}, each optionally with .gz."
    ),
    "E203": ErrorKind("{path} holds no rows.", "Check how the file was made; at least 1 row is needed."),
    "E204": ErrorKind("{path}, line {line}: {reason}.", "Correct this line, or write the file anew."),
    "E205": ErrorKind(
        "{path}: no row has the column {column!r}, mapped to {name!r}; columns found: {columns}.{hint}",
        "Correct `columns` (template name: column of the file).",
    ),
    "E206": ErrorKind("{path} has no split {split!r}; found: {found}.", "Add {split}.jsonl, or ask for another split."),
    "E207": ErrorKind(
        "{path} has {count} files for the split {split!r}: {files}.", "Leave 1 of them, or name the file."
    ),
    "E208": ErrorKind("The template {name!r} does not exist.{hint}", "`fate-llm-ext data templates` lists them."),
    "E209": ErrorKind("The template `{field}` is wrong: {reason}.", "Correct `{field}` in the job's parameters."),
    "E210": ErrorKind(
        "{where}, {field}: {reason}; columns of the row: {columns}.",
        "Choose another template, correct it, or map the columns with `columns`.",
    ),
    "E211": ErrorKind(
        "{where}: the answer ({length} characters) is not one of the {count} choices {choices}.",
        "Correct the row, or choose the template (or `task.choices`) that fits the file.",
    ),
    "E212": ErrorKind(
        "{asked:,} {what} rows were asked for, {available:,} are there ({detail}).",
        "Ask for fewer rows, or give more input files.",
    ),
    "E213": ErrorKind("{path} exists already{reason}.", "{advice}."),
    "E214": ErrorKind("{option}: {reason}.", "`fate-llm-ext data split --help` shows the form."),
    "E220": ErrorKind(
        "{path} gives no prompts: {reason}.",
        "Name a job with one `fdkt` task, or leave out --job: then the default prompts are taken.",
    ),
    # E3xx - federation and protocol --------------------------------------------------------------
    "E301": ErrorKind(
        "{sender} sent an invalid {message!r} message: {reason}.",
        "Run the same version of fate-llm-ext at both sites and look at the sender's log.",
        shared=True,
    ),
    "E302": ErrorKind(
        "{party} holds {got} public examples with fingerprint {got_hash}, the arbiter holds {expected} with "
        "{expected_hash}.",
        "Give every party the same public set; compare with `fate-llm-ext data fingerprint <path>` at both sites.",
        shared=True,
    ),
    "E303": ErrorKind(
        "{party} stopped the job: {reason}", "Solve the problem at {party}, then run the job again.", shared=True
    ),
    "E304": ErrorKind(
        "No sign of life from {party} for {silence} s (limit {limit} s) while waiting for its {message!r} message; "
        "it was last busy with: {doing}.",
        "Look at the log of {party}; if it is only slow, raise `network.{setting}`.",
        shared=True,
    ),
    "E305": ErrorKind(
        "Lost the connection to {party} while waiting for its {message!r} message: {reason}.",
        "Look at the log of {party} and at the federation engine between the sites.",
    ),
    "E306": ErrorKind(
        "{party} runs with other parameters than the arbiter: {differences}.",
        "Parameters that concern the protocol must be common to all parties: set them once in the DAG.",
        shared=True,
    ),
    "E307": ErrorKind(
        "{party} runs fate-llm-ext {got}, the arbiter runs {expected}.",
        "Install the same version at both sites.",
        shared=True,
    ),
    "E308": ErrorKind(
        "The message broker of this site gives no queue for {party}: {queues}.",
        "Look at the broker's log and at its user and permissions in FATE Flow's service_conf.yaml.",
    ),
    "E309": ErrorKind(
        "The process of {party} was killed (it was last busy with: {doing}).",
        "Look for kill -9, and for lack of memory (`dmesg`), at the site of {party}; then run job {job} again.",
        shared=True,
    ),
    "E310": ErrorKind("Job {job} was stopped, and with it the process of {party}.", "Nothing, if that was meant."),
    "E311": ErrorKind(
        "FATE Flow ended the process of {party} (last busy with: {doing}): job {job} failed at another site, which "
        "could not say why.",
        "Ask the other sites for the reports of their tasks in job {job}.",
    ),
    "E312": ErrorKind(
        "The job gives parameters that the component does not have: {names}.",
        "Run `fate-llm-ext check` on the job file; known are: {known}.",
    ),
    "E313": ErrorKind(
        "This site's FATE Flow does not say which table the folder {folder!r} is: {reason}.",
        "Give the job its tables by namespace and name, or through FATE's reader.",
    ),
    "E320": ErrorKind(
        "A peer's vocabulary is malformed: {problem}.",
        "run the same version of fate_llm_ext on every party.",
        shared=True,
    ),
    "E321": ErrorKind(
        "The vocabulary has {vocabulary} tokens, the tokenizer it should describe has {tokenizer}.",
        "read the vocabulary again after adding tokens.",
        shared=True,
    ),
    "E322": ErrorKind("Unknown vocabulary map '{method}'.", "use span or min_ed.", shared=True),
    "E323": ErrorKind(
        "The added token {token!r} has the id {index}, which its tokenizer's own rules would not give it.",
        "save the tokenizer again with its added tokens numbered after the vocabulary.",
    ),
    "E324": ErrorKind(
        "Token starts must not decrease within a sample; sample {sample} has {before} before {after}.",
        "run the same version of fate_llm_ext on every party.",
        shared=True,
    ),
    "E325": ErrorKind(
        "{what}: got shape {got}, expected {expected}.",
        "all parties must use the same public set and the same number of regions.",
        shared=True,
    ),
    "E330": ErrorKind(
        "None of the {rows} rows of the public set {name!r} has an answer.",
        "Give at least some public rows an answer; rows without are used beside them.",
    ),
    "E331": ErrorKind(
        "{held_out} of {labelled} labelled public rows would be held out at `distill.calibration_share` {share}; "
        "both parts must hold at least one row.",
        "Add labelled rows or change the share.",
        shared=True,
    ),
    "E332": ErrorKind(
        "None of the {rows} rows of the private table {table} has an answer.", "Check `task` and `task.columns`."
    ),
    # E4xx - models and training ------------------------------------------------------------------
    "E401": ErrorKind(
        "Cannot use the device {device!r}: {reason}.", "Set `device` in the site file to cpu, cuda or cuda:<index>."
    ),
    "E402": ErrorKind(
        "{folder} holds no causal language model that can be loaded: {reason}.",
        "Give a folder written by `save_pretrained` (config.json and model.safetensors).",
    ),
    "E403": ErrorKind(
        "The tokenizer in {folder} has {tokens} tokens, the model's embedding has {rows} rows.",
        "Use the tokenizer that belongs to the model.",
    ),
    "E404": ErrorKind(
        "No adapter can be placed on {modules}: {reason}.", "Leave `lora.target_modules` out to take all linear layers."
    ),
    "E405": ErrorKind(
        "{folder} holds no adapter that fits the base model: {reason}.", "Use the model it was trained on."
    ),
    "E406": ErrorKind(
        "The loss is {value} at step {step} of {phase}.",
        "Lower `train.learning_rate` (now {learning_rate}) or train in float32 (`model.dtype`).",
        shared=True,
    ),
    "E407": ErrorKind(
        "{bad} of {total} scores of {what} are NaN or infinite.",
        "The model has diverged: lower `train.learning_rate`, or check the base model with `text_evaluation`.",
        shared=True,
    ),
    "E408": ErrorKind(
        "Sequences may have {asked} tokens ({parts}), the model has positions for {limit}.",
        "Lower `task.max_length` (`control.max_length`), or use a model with a longer context.",
        shared=True,
    ),
    "E410": ErrorKind(
        "`llm.adapter` is {adapter!r}, but the LLM {name!r} is an HTTP endpoint or a recording.",
        "Leave `llm.adapter` out and let the server load the adapter, or name a local model.",
    ),
    "E411": ErrorKind(
        "`{field}` of the endpoint {name!r} points to {path}: {reason}.", "Correct the site file, or the file."
    ),
    "E412": ErrorKind(
        "{path}, the API key of the endpoint {name!r}, has the mode {mode}: everyone on this machine may read it.",
        "chmod 600 {path}",
    ),
    "E413": ErrorKind(
        "The endpoint {name!r} refused {what} with status {status}.",
        "400: the prompt is too long, or a value is out of range; 400 or 422: a field that it does not know (`top_k: "
        "false` of the endpoint); 404: no such `url` or `model`.",
    ),
    "E414": ErrorKind(
        "The endpoint {name!r} gave no usable answer to {what}: {attempts} attempt(s) in {seconds:.1f} s, allowed are "
        "{allowed} in {deadline:g} s; the last: {reason}.",
        "Look at the server, or raise `retries` and `deadline_seconds` of the endpoint.",
    ),
    "E415": ErrorKind(
        "The endpoint {name!r} refused {what} with status {status} ({key}).",
        "Put a valid key into the file that `key_file` of the endpoint names.",
    ),
    "E416": ErrorKind(
        "The endpoint {name!r} lists {count} models: {models}.", "Name one of them as `model` of the endpoint."
    ),
    "E417": ErrorKind(
        "The endpoint {name!r} cannot be asked: {reason}.", "Correct `url` or `ca_file` of the endpoint."
    ),
    "E418": ErrorKind(
        "The recording {name!r}, {path}: {reason}.",
        "It needs a file `<role>_<party id>.jsonl` for each client, whose line i is the answer about row i.",
    ),
    "E419": ErrorKind(
        "The recording {name!r} holds {lines} answers for {client}, asked for is the one about row {row} (from 0).",
        "Record an answer for every row of the client's train split, in its order.",
    ),
    "E440": ErrorKind(
        "{folder}: no tokenizer here.",
        "point to a folder with tokenizer.json, vocab.json + merges.txt, encoder.json + vocab.bpe, or tokenizer.model.",
    ),
    "E441": ErrorKind(
        "{folder}: the tokenizer has no end-of-text token (looked for {candidates}).",
        "name it as eos_token in tokenizer_config.json.",
    ),
    "E442": ErrorKind(
        "{folder}: the tokenizer's files cannot be read: {cause}.",
        "compare the files' sizes and checksums with their origin.",
    ),
    "E443": ErrorKind(
        "The distillation loss got shapes that do not fit: {shapes}.",
        "pass logits [P, V], ids [P, K] and log_probs [P, K] of the same positions.",
    ),
    "E444": ErrorKind("Unknown treatment of the tail '{tail}'.", "use bucket or drop."),
    "E445": ErrorKind("A chunk of {chunk} positions.", "use at least 1."),
    "E446": ErrorKind(
        "The tokenizer with {size} tokens has no end token, so no answer could end.",
        "set its eos_token, or load it with load_tokenizer.",
    ),
    "E450": ErrorKind(
        "The settings of the small model do not fit: {problems}.", "See `fate-llm-ext models tiny --help`."
    ),
    "E451": ErrorKind(
        "{path} has no column {wanted} (columns: {columns}).",
        "Give --text-column, or --prompt-column and --completion-column.",
    ),
    "E452": ErrorKind(
        "The corpus is too small: {documents} document(s), {tokens} training tokens; needed are 2 documents and two "
        "blocks of {context} tokens.",
        "Add text (--corpus can be repeated) or lower --context.",
    ),
    "E453": ErrorKind("{path} exists already.", "Give another --out, or --force to replace it."),
    "E454": ErrorKind(
        "{path} is not a model folder: {reason}.", "Name a folder with config.json and *.safetensors files."
    ),
    "E456": ErrorKind(
        "A vocabulary of {asked} tokens is too small for {kind}: it needs at least {needed}.", "Raise --vocab-size."
    ),
    # E5xx - engine and environment ---------------------------------------------------------------
    "E500": ErrorKind(
        "Python {running} ({executable}) is not supported: FATE 2.2 has wheels for 3.9 to 3.11 only.",
        "make venv PYTHON=/path/to/python3.11",
    ),
    "E501": ErrorKind("{package} is not installed.", "{repair}"),
    "E502": ErrorKind("{package} {installed} is installed, {limit} is required.", "{repair}"),
    "E503": ErrorKind("{package} {installed} is installed; FATE 2.2 needs {limit}: {effect}.", "{repair}"),
    "E504": ErrorKind(
        "transformers {transformers} belongs to no tested set (modern: 5.x, compat: 4.37.x).",
        "make venv (modern) or make venv-compat (what FATE 2.2 pins).",
    ),
    "E505": ErrorKind("{package} {installed} is installed, the {set} set was tested with {tested}.", "{repair}"),
    "E506": ErrorKind("This is the {build} build of torch and this machine {machine} NVIDIA GPU.", "{repair}"),
    "E507": ErrorKind(
        "The component {name} ({value}) cannot be imported, so FATE will not find it: {reason}.", "{repair}"
    ),
    "E508": ErrorKind("{free} GB are free at {path}, at least {needed} GB are needed.", "Free some space (df -h .)."),
    "E509": ErrorKind("No component of this package is registered under {group}, so FATE cannot find it.", "{repair}"),
    "E510": ErrorKind("torch cannot be imported: {reason}.", "{repair}"),
    "E520": ErrorKind(
        "{where} comes from {source}, which only FATE Flow can serve.",
        "Run the job over FATE Flow (`fate-llm-ext submit`), or take a table of the site file or the output of a task.",
    ),
    "E521": ErrorKind("{party} failed in task {task}: {reason}", "See {log}."),
    "E522": ErrorKind("{party} was killed by {signal} in task {task}.{hint}", "See {log}."),
    "E523": ErrorKind("The disk of {path} is full ({free_mb} MB free).", "Free some space or choose another --out."),
    "E524": ErrorKind(
        "Not enough free memory for {parties} parties: {free_mb} MB free, at least {needed_mb} MB needed.",
        "Close other programs or use smaller models.",
    ),
    "E525": ErrorKind(
        "FATE's Pipeline SDK is not installed ({reason}).", "pip install fate-client==2.2.0, or write the job as YAML."
    ),
    "E526": ErrorKind("The job was stopped by {signal} during task {task}.", "Start it again when you like."),
    "E527": ErrorKind("{party} ended task {task} without a word about its outputs.", "See {log}."),
    "E528": ErrorKind(
        "Task {task} did not end within dag.conf.task.timeout = {seconds} s.", "Raise it; last words: {log}."
    ),
    "E529": ErrorKind(
        "Cannot start {party}: {reason}.", "Check the option and the environment (`fate-llm-ext doctor`)."
    ),
    "E530": ErrorKind("The output folder {path} cannot be used: {reason}.", "Choose another --out."),
    "E531": ErrorKind("{path} is no run directory: it holds no dag.yaml.", "Name a directory that `run` has made."),
    "E532": ErrorKind("{path} is given more than once among {runs} runs.", "Name each run once."),
    "E533": ErrorKind(
        "{first} and {second} are runs of different jobs: {where} is {one!r} and {other!r}.",
        "Compare runs that differ in seeds or in the content of their data only, or jobs side by side (--study).",
    ),
    # E6xx - privacy: events and accountants 600, ledger 610, DP training 630, audit 650, DP-KD 660, commands 690 ----
    "E601": ErrorKind(
        "{got} is no known privacy mechanism (known: {known}).",
        "Nobody can say what it costs, so it is refused; run the version of fate-llm-ext that wrote it.",
    ),
    "E602": ErrorKind(
        "{name} of a {kind} mechanism is {got}; it must lie between {low} and {high}.", "Correct the value."
    ),
    "E603": ErrorKind("{name} is {got}; it must lie {between} {low} and {high}.", "Correct the value."),
    "E604": ErrorKind(
        "The accountant {accountant} needs {package}, which cannot be imported ({reason}).",
        "pip install 'fate-llm-ext[privacy]'",
    ),
    "E605": ErrorKind("{got!r} is no accountant (known: {known}).", "Set `privacy.accountant` to one of them."),
    "E606": ErrorKind(
        "ε = {target} at δ = {delta} cannot be reached: what else is released costs {others} already, and not even "
        "σ = {most} keeps the rest within it.",
        "Raise `privacy.epsilon`, train fewer epochs, or release less beside the training.",
    ),
    "E607": ErrorKind(
        "δ = {delta} is not below 1 / N = {limit} for {records} records: publishing one record in the clear would "
        "count as private.",
        "Leave `privacy.delta` out (then it is {default}) or set it below {limit}.",
    ),
    "E608": ErrorKind(
        "The budget of {table} has δ = {delta}, which is not below 1 / N = {limit} for {records} records: publishing "
        "one record in the clear would hold it.",
        "Its owner sets `delta` below {limit} in `budgets` of the site file, e.g. {default}.",
    ),
    "E610": ErrorKind(
        "{what} of {table} is refused: it costs ε = {alone}, {releases} earlier release(s) cost {spent}, all together "
        "{composed}, allowed are {budget} (δ = {delta}, accountant {accountant}).",
        "{advice}.",
    ),
    "E611": ErrorKind(
        "{what} of {table} is refused: it is not differentially private (ε = inf), allowed are ε = {budget} at "
        "δ = {delta}.",
        "Train with `privacy`, or let the owner of the table set `epsilon: .inf` in its site file.",
    ),
    "E612": ErrorKind(
        "The privacy ledger {path} has {count} problem(s), so nobody knows what is spent: {problems}",
        "Restore the folder from a backup and lower the budgets by what was released since, which it does not know, or "
        "to what is spent; `fate-llm-ext privacy verify` names all problems.",
    ),
    "E613": ErrorKind(
        "Line {line} {reason}.",
        "Restore the ledger's folder from a backup; releases made since are missing there, so lower the budgets by "
        "them.",
    ),
    "E614": ErrorKind(
        "The file does not end as it should: {reason}.",
        "Restore the ledger's folder from a backup, as a whole; releases made since are missing there, so lower the "
        "budgets by them.",
    ),
    "E615": ErrorKind(
        "The last {bytes} bytes are no entry: their writer was stopped before it could release anything.",
        "Nothing to do: the next release marks them and goes on.",
    ),
    "E616": ErrorKind(
        "The site sets no privacy budget for {table} (it has budgets for: {known}); as soon as it has one for any "
        "table, nothing leaves about the others.",
        "Its owner adds `budgets: {{{table}: {{epsilon: <ε>, delta: <δ>}}}}` to the site file.",
    ),
    "E618": ErrorKind(
        "The privacy ledger {path} cannot be written: {reason}.",
        "Nothing was released. Free space or correct the rights of the folder (`state` of the site file).",
    ),
    "E619": ErrorKind(
        "A release cannot be classified: {reason}.",
        "Name the table, the 64 hex digits of its fingerprint and every mechanism.",
    ),
    "E630": ErrorKind(
        "privacy.batch_size is {batch_size}, the private table has {records} records.",
        "Choose a batch of at most {records}, e.g. a tenth of the records.",
    ),
    "E631": ErrorKind(
        "privacy.max_grad_norm is {norm}: without a bound on a record's gradient there is no privacy.",
        "Give a finite norm, e.g. 1.0.",
    ),
    "E632": ErrorKind(
        "{items} training items for a plan of {records} records: the guarantee counts one item per record.",
        "Plan the training with the number of items.",
    ),
    "E633": ErrorKind(
        "{asked} more steps after {done} would exceed the {planned} steps that the noise was chosen for.",
        "Raise privacy.epochs and plan again.",
    ),
    "E634": ErrorKind(
        "The weights are not finite after step {step} of {phase} (learning rate {learning_rate}).",
        "Lower `privacy.learning_rate`, or load the model in float32.",
        shared=True,
    ),
    "E635": ErrorKind(
        "The stored state of the noisy training does not fit: its {what}: {stored}, here: {got}.",
        "Resume with the parameters and the data that it was stored with, or start anew.",
    ),
    "E636": ErrorKind("The model has no trainable parameter.", "Add an adapter (lora) or train all weights."),
    "E637": ErrorKind(
        "privacy.per_sample: {wish} is not exact for this model: {reason}.", "Use privacy.per_sample: auto, or loop."
    ),
    "E650": ErrorKind(
        "An audit got scores {scores} for {canaries} canaries, {bad} of them no numbers.",
        "Give one number per canary, [m] or [scores, m]; a training that diverges cannot be audited.",
    ),
    "E651": ErrorKind(
        "An audit shall guess {size} canaries at each end of {canaries}; possible are 1 to {most}.",
        "Use more canaries or fewer guesses.",
    ),
    "E652": ErrorKind(
        "{count} canaries of {length} words each cannot be told apart: there are {words} words to draw from.",
        "Use longer canaries, or a list of more words.",
    ),
    "E660": ErrorKind(
        "{path}: {count} of {rows} rows have a control code that is not among the {codes} of `control.values` (row "
        "{row} first).",
        "Complete `control.values` (the list is public), correct `control.code`, or remove these rows.",
    ),
    "E661": ErrorKind(
        "{path}: {count} of {rows} rows have no {what} (row {row} first; columns: {columns}).",
        "Correct `control.{what}` or `control.columns`, or remove these rows.",
    ),
    "E662": ErrorKind(
        "The prompt of control code {control} takes {tokens} tokens; with at least {needed} of text that is more than "
        "`control.max_length` {limit}.",
        "Raise `control.max_length`, or shorten the code or `synthesis.max_new_tokens`.",
        shared=True,
    ),
    "E663": ErrorKind(
        "The control codes {first} and {second} of {codes} differ in spaces or Unicode form only.",
        "Give each code once in `control.values`.",
        shared=True,
    ),
    "E664": ErrorKind("Prompt {prompt} of {prompts} has no token, so nothing could follow it.", "Give it some text."),
    "E665": ErrorKind(
        "A prompt of {prompt} tokens and a text of {new} do not fit into the model, which has positions for {limit}.",
        "Lower `max_new_tokens`, or use a model with a longer context.",
        shared=True,
    ),
    "E666": ErrorKind(
        "{phase}: none of {items} sequences has a token to learn.",
        "Raise the longest sequence, or check that the rows have texts.",
        shared=True,
    ),
    "E667": ErrorKind(
        "The hidden states of teacher and student cannot be compared: {reason}.",
        "Set `distill.hidden_weight` to 0, or use models of one tokenizer with `student_at: guest`.",
        shared=True,
    ),
    "E670": ErrorKind(
        "A party of role {role} lacks the parameter {parameter!r}: {why}.",
        "Name a model of its site file as `{parameter}`, for all parties or in `party_tasks`.",
        shared=True,
    ),
    "E671": ErrorKind(
        "{rounds} rounds were asked for, the teacher's training has {steps} steps in all.",
        "Lower `rounds`, or raise `privacy.epochs`, or lower `privacy.batch_size`.",
        shared=True,
    ),
    "E672": ErrorKind(
        "{party} trains another teacher (fingerprint {got}) than {other} ({expected}); their weights have no mean.",
        "Give every owner the same base model, `teacher_weights` and `lora`.",
        shared=True,
    ),
    "E700": ErrorKind(
        "The template `{field}` does not use {missing} (it uses: {used}), so the model is not told what it is about.",
        "Add it to `{field}`; `fate-llm-ext desc <component>` shows the default.",
    ),
    "E701": ErrorKind(
        "The LLM is behind an HTTP server, which gives no hidden states, and no `embedder` is named.",
        "Name a small model of the arbiter's site file as `embedder`.",
        shared=True,
    ),
    "E702": ErrorKind(
        "{folder} holds no model that can embed texts: {reason}.",
        "Give the folder of an encoder or of a causal language model (config.json and model.safetensors).",
    ),
    "E720": ErrorKind(
        "The prompt of the task model takes {tokens} tokens without any text, with label and end token there is room "
        "for {limit}.",
        "Raise `control.max_length`, or shorten `prompts.student` or the labels.",
        shared=True,
    ),
    "E721": ErrorKind(
        "The task model in `input_model` was trained with `{parameter}` {trained!r}, the predict stage has {asked!r}.",
        "Give the predict stage the parameters of the train stage.",
    ),
    "E722": ErrorKind(
        "{folder} holds no model that can be loaded as a sequence classifier: {reason}.",
        "Give a folder written by `save_pretrained` of a base model or of a classifier of the same labels.",
    ),
    "E723": ErrorKind(
        "{folder} holds no task model of FDKT: {reason}.",
        "Give `input_model` the `output_model` of an `fdkt` train stage.",
    ),
    "E730": ErrorKind(
        "None of the {asked} texts that the generator wrote is valid ({dropped}).",
        "Give the generator more to learn from (`privacy.epsilon`, `privacy.epochs`, a better base model), or relax "
        "`validity` and `synthesis`.",
    ),
    "E731": ErrorKind(
        "{folder} holds no generator of FDKT: {file} cannot be read ({reason}).",
        "Give the folder of the output `generator_model` of an `fdkt` task that has ended.",
    ),
    "E732": ErrorKind(
        "{path} is of version {got!r}, this release reads version {known}.",
        "Read it with the release that wrote it, or train the generator anew.",
    ),
    "E733": ErrorKind(
        "{path} does not describe a generator of FDKT: {reason}.",
        "Give the folder of the output `generator_model` of an `fdkt` task; if it is one, restore the file.",
    ),
    "E740": ErrorKind(
        "{got} of {asked} augmented texts came back: {note}.",
        "The task model learns from what there is. Look at the prompts (`fate-llm-ext check --show-prompts`), the LLM "
        "and the counts of dropped texts.",
    ),
    "E741": ErrorKind(
        "All {asked} augmented texts came back, but {note}.",
        "See whether that matters for the task; more synthetic texts (`synthesis.samples`) may help.",
    ),
    "E750": ErrorKind(
        "The closed vocabulary needs at least 2 words, the {source} gives {words} (left out: {left_out}).",
        "Name a larger public set as `vocabulary.public`, or a model whose tokenizer knows whole words as "
        "`vocabulary.model`.",
        shared=True,
    ),
    "E751": ErrorKind(
        "The table of vectors is {shape}, the tokenizer needs {needed} rows.",
        "Use the tokenizer that belongs to the model.",
        shared=True,
    ),
    "E758": ErrorKind(
        "The attack `infill` needs a causal or a masked language model, {model} is an encoder-decoder.",
        "Name another model as `attack.model`, or take `infill` out of `attack.methods`.",
    ),
    "E759": ErrorKind(
        "The attack `infill` needs a mask token, and the tokenizer of {model} has none.",
        "Name another model as `attack.model`, or add `mask_token` to its tokenizer_config.json.",
    ),
    "E762": ErrorKind(
        "`{parameter}` takes {tokens} tokens, there is room for {limit} (half of `task.max_length`).",
        "Shorten it, or raise `task.max_length`.",
        shared=True,
    ),
    "E763": ErrorKind(
        "The encoder-decoder in {folder} does not say with which token its decoder begins.",
        "Set `decoder_start_token_id` in its config.json.",
    ),
    "E764": ErrorKind(
        "`lora.embeddings` is true and the SLM is an encoder-decoder: its input embedding is used in two places.",
        "Set `lora.embeddings` to false, or `student_weights` to full.",
    ),
    "E765": ErrorKind(
        "The SLM in `input_model` was trained with `{parameter}` {trained!r}, the predict stage has {asked!r}.",
        "Give the predict stage the parameters of the train stage.",
    ),
    "E766": ErrorKind(
        "{folder} holds no SLM of FedCoT: {reason}.",
        "Give `input_model` the `output_model` of a `fedcot` train stage.",
    ),
    "E768": ErrorKind(
        "`rationale.demonstrations` holds {count}, `rationale.prompt` shows none (it uses: {used}).",
        "Add `{{% for one in demonstrations %}} ... {{% endfor %}}` to it, or leave the demonstrations out; "
        "`fate-llm-ext desc fedcot` shows the default.",
    ),
    "E769": ErrorKind(
        "The LLM {llm!r} is {found}, the job asks for {asked}.",
        "Set `rationale.recorded` of the fedcot task to true for a recording, to false for all other LLMs; no other "
        "component takes a recording.",
        shared=True,
    ),
    "E776": ErrorKind(
        "`perturbation.strategy` {strategy} asks about texts of a DP generator, and the task gives {role} none.",
        "Link the input `generator` to the output `generator_model` of an `fdkt` task, or choose another strategy.",
        shared=True,
    ),
    "E777": ErrorKind(
        "The task gives {role} a DP generator, which `perturbation.strategy` {strategy} does not use: the questions "
        "would be about the private prompts.",
        "Remove the input `generator`, or set `perturbation.strategy: dp_generator`.",
        shared=True,
    ),
    "E778": ErrorKind(
        "The task's prompt shows {fields} fields ({shown}; listed to leave: {listed}), and a DP generator writes one "
        "text, of which the fields cannot be told apart.",
        "Give a task whose prompt needs one text field, or choose another `perturbation.strategy`.",
        shared=True,
    ),
    "E779": ErrorKind(
        "{shared} of the {rows} rows of the public set {name!r} are among the {records} records of the private table: "
        "a model that rewrites prompts must not learn from private ones, and the LLM would read them in clear.",
        "Take these rows out of the set, or name another one as `perturbation.proxy`.",
    ),
    "E780": ErrorKind(
        "For none of the {rows} public prompts rationales came back both for the prompt and for its perturbed form: "
        "the SLM has learned to rewrite prompts, but not to decode rationales.",
        "Look at the LLM and its prompt (`fate-llm-ext check --show-prompts`), or give more rows "
        "(`perturbation.proxy_rows`).",
    ),
    "E784": ErrorKind(
        "`question.fields` lists {field}, but {why}; fields that may leave: {known}.",
        "Take it out of `question.fields`, or change `task.prompt`.",
        shared=True,
    ),
    "E785": ErrorKind(
        "No field of the task's prompt may leave: the answer is made of {answer}, and nothing else is shown.",
        "Name a prompt with other fields as `task.prompt`.",
        shared=True,
    ),
    "E786": ErrorKind(
        "`question.max_words` is {words}, but {fields} fields leave, each with a word at least.",
        "Raise `question.max_words`, or list fewer `question.fields`.",
        shared=True,
    ),
    "E787": ErrorKind(
        "{path}: {count} of {rows} rows have no answer, first row {row}; nothing can be learned from them.",
        "Remove them or add the answers.",
    ),
    "E788": ErrorKind(
        "{lost} of {clients} clients dropped out: {reasons}",
        "The others have what they asked for. See the reports of those that are named.",
    ),
    "E789": ErrorKind(
        "{got} of {asked} questions have a rationale: {note}.",
        "The model learns from what there is. Look at the LLM's prompts (`fate-llm-ext check --show-prompts`) and at "
        "the counts of dropped rationales.",
    ),
    "E790": ErrorKind(
        "None of {got} rationales is good enough to learn from ({dropped}): the model has learned from labels alone.",
        "Look at the counts `rationales_*`, and loosen `quality` where they say so.",
    ),
    "E791": ErrorKind(
        "{empty} of {asked} questions are empty and {long} are longer than {limit} bytes: these were not asked.",
        "The model learns the labels of their records without a rationale. List other `question.fields`, or give a "
        "`question.template`.",
    ),
    "E792": ErrorKind(
        "The field {field} may leave, and it is the answer itself in all of {rows} rows.",
        "Take it out of `question.fields` and of `task.prompt`; see `task.columns`.",
    ),
    # E8xx - FATE Flow: submitting 800, provider 820, checks of sites 835, pipelines 850 --------------------------
    "E800": ErrorKind(
        "No FATE Flow server is named: neither by --server nor by FATE_LLM_EXT_SERVER nor by `flow init`.",
        "Give the address of this site's server, e.g. --server 127.0.0.1:9380.",
    ),
    "E801": ErrorKind(
        "The FATE Flow server {address} gives no answer: {reason}.",
        "Start it (`fate_flow status`), or give its address with --server HOST:PORT.",
    ),
    "E802": ErrorKind("{address!r} is no address of a FATE Flow server.", "Give HOST:PORT, e.g. 127.0.0.1:9380."),
    "E803": ErrorKind(
        "The credentials for FATE Flow are incomplete: {reason}.",
        "Set FATE_LLM_EXT_APP_ID, and FATE_LLM_EXT_APP_TOKEN_FILE to a file that holds the token, or neither.",
    ),
    "E804": ErrorKind(
        "What answers at {address} is not a FATE Flow 2 server: {reason}.",
        "Give the host and the `http_port` of `fateflow` in the server's service_conf.yaml.",
    ),
    "E805": ErrorKind(
        "The FATE Flow server {address} does not accept this client: {reason}.",
        "Set FATE_LLM_EXT_APP_ID and FATE_LLM_EXT_APP_TOKEN_FILE to what `flow client create-client` gave, have the "
        "administrator `flow permission grant --app-id <id> -r client`, and see that this computer's clock is right.",
    ),
    "E806": ErrorKind(
        "The FATE Flow server {address} refuses {call}: code {number}, {message}.",
        "Correct what it says; more is in its log.",
    ),
    "E807": ErrorKind(
        "The table {table} of {party} is not bound at its FATE Flow server {address}.",
        "Bind it there: `flow table bind --namespace {namespace} --name {name} --path <folder>`.",
    ),
    "E808": ErrorKind(
        "The FATE Flow server {address} has no provider {provider}.",
        "Make it known there: `fate-llm-ext provider register <folder>`.",
    ),
    "E809": ErrorKind(
        "The FATE Flow server {address} knows no job {job}.",
        "`fate-llm-ext status` lists its jobs; ask the server of a site that takes part.",
    ),
    "E810": ErrorKind(
        "Job {job} failed at {party} in {task}: {reason}",
        "See the log: `fate-llm-ext logs {job} --errors`; after a repair `fate-llm-ext rerun {job}`.",
    ),
    "E811": ErrorKind(
        "Job {job} failed at another site ({others}): {reason}",
        "Ask for the output of `fate-llm-ext logs {job} --errors` at {others}.",
    ),
    "E812": ErrorKind(
        "The FATE Flow server {address} has not answered for {silence} s ({reason}). Job {job} goes on without it "
        "being watched.",
        "Start the server, then `fate-llm-ext status {job} --wait`.",
    ),
    "E813": ErrorKind(
        "Job {job} has not ended within {seconds} s, it is {status}; it goes on.",
        "`fate-llm-ext status {job} --wait` watches it further, `fate-llm-ext stop {job}` ends it.",
    ),
    "E814": ErrorKind(
        "Job {job} ended as {status}{detail}.",
        "`fate-llm-ext rerun {job}` starts again what had not ended.",
    ),
    "E815": ErrorKind(
        "The archive of {what} is refused: {reason}.", "Look at the task's output at the FATE Flow server."
    ),
    "E816": ErrorKind(
        "{path} exists and is not an earlier fetch of job {job}.", "Name another folder with --out, or move it away."
    ),
    "E817": ErrorKind("Watching job {job} was ended by {signal}. {consequence}", "{advice}"),
    "E818": ErrorKind("Job {job} is {status}: it cannot be {asked}.", "{advice}"),
    "E819": ErrorKind(
        "Job {job} has no {what} at this site (it has: {known}).", "Correct the option, or ask at another site."
    ),
    "E820": ErrorKind(
        "{python} is not the Python of a FATE Flow server: {reason}.",
        "Name the Python of the server's environment, e.g. --server-python /data/projects/fate/env/bin/python.",
    ),
    "E821": ErrorKind(
        "{python} has FATE Flow {got}; providers are made for {expected}.",
        "Install fate_flow=={expected} there, or name another server's Python.",
    ),
    "E822": ErrorKind(
        "A Python 3.11 with venv is needed: {found}.",
        "apt-get install python3.11 python3.11-venv (or pyenv install 3.11), or name one: --python /path/to/python3.11",
    ),
    "E823": ErrorKind(
        "The package index cannot be reached, or it has no torch for this machine (log: {log}).",
        "Check the network, name a mirror (PIP_INDEX_URL, UV_INDEX_URL), or take a wheelhouse along: `fate-llm-ext "
        "provider wheelhouse`. What was done stays done.",
    ),
    "E824": ErrorKind("The step `{step}` failed: {reason}.", "Read {log}, then repeat; what was done stays done."),
    "E825": ErrorKind("{path} is no checkout, wheel or sdist of fate-llm-ext.", "Correct --source."),
    "E826": ErrorKind(
        "{path} holds no environment (bin/python, or venv/bin/python).", "Name a provider's folder, or its `venv`."
    ),
    "E827": ErrorKind(
        "FATE Flow's workers would not run in {environment}: {reason}.",
        "Run `fate-llm-ext provider build` again; if it was shared with --environment, build that one first.",
    ),
    "E828": ErrorKind(
        "{path} holds no finished provider: {reason}.", "Run `fate-llm-ext provider build {path} --server-python ...`."
    ),
    "E829": ErrorKind(
        "{path} could not be changed: {reason}.",
        "Set `default_provider` there by hand, or name the provider in the job (dag.conf.task.provider).",
    ),
    "E830": ErrorKind(
        "{server} says that {provider} is {got}; it was told {expected}.",
        "Look whether somebody else registers the same version there, then repeat.",
    ),
    "E831": ErrorKind("{path} cannot be written: {reason}.", "Correct the rights, or choose another folder."),
    "E832": ErrorKind(
        "A package has no wheel and could not be built (log: {log}).",
        "apt-get install g++ python3.11-dev, or use a wheelhouse, where it is built already; then repeat.",
    ),
    "E833": ErrorKind(
        "The wheelhouse {wheelhouse} has no {package}.",
        "Make it with the same version of this package, on a machine of the same kind (`provider wheelhouse`).",
    ),
    "E835": ErrorKind(
        "{count} thing(s) keep these sites from a common job: {problems}.",
        "Install the same versions at all sites, and look at the log of a site that cannot use its file.",
        shared=True,
    ),
    "E836": ErrorKind(
        "The sites have different versions of {differences}.",
        "Jobs run, but their numbers may differ from those of sites that are alike.",
        shared=True,
    ),
    "E837": ErrorKind(
        "The clock of {party} differs by {offset} from the arbiter's (limit {limit} s).",
        "Have it set by NTP; until then times in logs of several sites cannot be compared.",
        shared=True,
    ),
    "E838": ErrorKind(
        "The clocks of {party} and the arbiter moved against each other during the check, within {seconds} s.",
        "See that neither is being set by hand, and repeat the check.",
        shared=True,
    ),
    "E839": ErrorKind(
        "The FATE Flow server {address} could not start the job, {count} site(s) did not take it: {refusals}.",
        "Run `fate-llm-ext doctor --flow` at these sites.",
    ),
    "E840": ErrorKind(
        "{provider} at {address} names {path}, which does not exist on this machine.",
        "Make it anew and tell the server: `fate-llm-ext provider build`, then `fate-llm-ext provider register`.",
    ),
    "E841": ErrorKind(
        "A task that names no provider gets {got} at this site, not {expected}.",
        "`fate-llm-ext provider register FOLDER --default` and a restart of the server, or `dag.conf.task.provider` in "
        "each job; `fate-llm-ext submit` adds it by itself.",
    ),
    "E842": ErrorKind(
        "The message broker of {what} at {address} is of no use: {reason}.",
        "Start it, open the port, or correct service_conf.yaml and rabbitmq_route_table.yaml of this site's FATE Flow.",
    ),
    "E843": ErrorKind(
        "The message broker works in mode {mode}, in which jobs were seen to hang.",
        "Give each site a broker of its own and set `federation.rabbitmq.mode: replication` in service_conf.yaml.",
    ),
    "E844": ErrorKind(
        "The table {table} of {party} is bound to {got} at {address}, the site file says {expected}.",
        "Correct the site file, or bind it anew: `flow table bind --namespace {namespace} --name {name} --path "
        "{expected}`.",
    ),
    "E845": ErrorKind(
        "There is no site file at {path}: what it says of tables was not compared with the server.",
        "Name it: --sites FILE, or the variable FATE_LLM_EXT_SITE, as in the server's environment.",
    ),
    "E846": ErrorKind(
        "The server {address} is the site of party {party}, which takes no part: {parties}.",
        "Name the server of a site that takes part (--server), or the right parties.",
    ),
    "E847": ErrorKind(
        "{path} cannot be read: {reason}. Default provider and brokers were not examined.",
        "Run this as the user of the server.",
    ),
    "E848": ErrorKind(
        "The handshake, job {job}, has not ended within {seconds} s and was stopped; last known: {awaited}.",
        "Run `fate-llm-ext doctor --flow` at the site that is awaited; a slow start needs a longer --deadline.",
    ),
    "E849": ErrorKind(
        "{part!r} in {text!r} is no further party of a job.", "Write each once, as ROLE:ID with ROLE one of {roles}."
    ),
    "E850": ErrorKind(
        "The adapter given as `warm_start_model` is not one of this job's model: {differences}.",
        "Train with the base model and `lora` of the earlier job, or without a warm start.",
    ),
    "E851": ErrorKind(
        "The input `warm_start_model` holds nothing from which {party} can go on: {reason}.",
        "Link `output_model` of a fedmkt task (stage train) of the same party.",
    ),
    "E852": ErrorKind(
        "{source} cannot give a {kind} input.",
        "Use {expected} (an earlier job's or a bound one) or task_output_artifact.",
    ),
    "E853": ErrorKind(
        "It is not said which earlier job's model this is: no {missing}.",
        "Set conf.model_warehouse.model_id (the id of the job that trained it) and conf.model_warehouse.model_version "
        "('0'), or both here.",
    ),
    "E854": ErrorKind("The input {name} of {component} cannot be {value!r}.", "Write {expected}, or give a channel."),
    "E865": ErrorKind(
        "The message broker of this site does not answer for {seconds} s: {reason}.",
        "Look at the broker's log and start it again, then run the job again.",
    ),
    "E866": ErrorKind(
        "Messages from {party} are lost: {count} later ones are here, its {message!r} message is not.",
        "See whether a message broker was restarted: what it holds does not outlive that. Then run the job again.",
        shared=True,
    ),
    "E867": ErrorKind(
        "This site's FATE Flow did not take {count} metrics within {seconds} s: {reason}.",
        "Look at the log of FATE Flow; the numbers stand in the log of the task as well.",
    ),
}


class ExtensionError(Exception):
    """A catalogued error.

    Args:
        code: key of :data:`CATALOGUE`.
        facts: values for the placeholders of the entry (both numbers, names, paths).
    """

    def __init__(self, code: str, **facts: Any) -> None:
        kind = CATALOGUE[code]
        self.code = code
        self.facts = facts
        self.problem = kind.problem.format(**facts)
        self.next_step = kind.next_step.format(**facts)
        super().__init__(f"{code} {self.problem} Next: {self.next_step}")

    @property
    def shared(self) -> bool:
        """Whether other parties may read the text."""
        return CATALOGUE[self.code].shared

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.code, self.facts)


def _rebuild(code: str, facts: dict[str, Any]) -> ExtensionError:
    return ExtensionError(code, **facts)


@dataclass(frozen=True)
class Problem:
    """One finding of a check: where (dotted path), the catalogued error."""

    where: str
    error: ExtensionError

    def __str__(self) -> str:
        return f"{self.where}: {self.error}"
