"""magnet push: uploads a checkpoint to the Hugging Face Hub.

    magnet push --model_name_or_path runs/smol --repo_id name/model --private
    magnet push --model_name_or_path runs/smol --form encoder --repo_id name/model-encoder

The token comes from `hf auth login` or HF_TOKEN; it cannot be passed on the command line. Creates the repository if
missing, and writes its name into the model card. Prints the URL of the commit, which ends with the hash to pin as
revision, or of the pull request. In Python: magnet_hub.push.push_checkpoint().
"""

import tempfile
from pathlib import Path

from magnet_hub import FORMS

from .export import add_form_flags
from .parser import Parser


def main(args: list[str]) -> None:
    parser = Parser("magnet push", __doc__)
    parser.add_argument("--model_name_or_path", required=True, help="checkpoint folder; with --form also a Hub id")
    parser.add_argument("--repo_id", required=True, help="name/model")
    parser.add_argument("--form", choices=FORMS, help="export to this form first (default: push the folder as it is)")
    add_form_flags(parser)
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch, created if missing (default: main)")
    parser.add_argument("--commit_message")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing")
    options = parser.parse_args(args)
    if options.form is None and (options.dtype or options.base_model_name_or_path):
        parser.error("--dtype and --base_model_name_or_path need --form")
    if options.form == "adapter" and options.base_model_name_or_path is None:
        parser.error("--form adapter needs --base_model_name_or_path: push the base first (magnet export writes it)")

    from magnet_hub.push import push_checkpoint

    wanted = {name: getattr(options, name) for name in ("private", "revision", "commit_message", "create_pr")}
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model_name_or_path
        if options.form:
            from magnet_hub.export import export_checkpoint

            folder, base = Path(scratch) / options.form, options.base_model_name_or_path
            export_checkpoint(options.model_name_or_path, folder, options.form, options.dtype or "auto", base)
        print(push_checkpoint(folder, options.repo_id, **wanted))
