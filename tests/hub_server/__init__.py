"""A small Hub-compatible HTTP server for offline tests. Standard library only, everything in memory.

It answers the requests that huggingface_hub 2.4 sends for create_repo, upload_file, upload_folder,
create_commit (with parent_commit and create_pr), hf_hub_download, snapshot_download, model_info,
list_repo_files, list_repo_refs, create_tag, create_branch, list_models, delete_repo and ModelCard,
for the repository types model, dataset, space and kernel. Regular files travel inside the commit,
large ones through the LFS routes. There is no Xet route: set HF_HUB_DISABLE_XET=1 in the client,
or uploads fail at `xet-write-token`.

huggingface_hub reads its environment at import: the root conftest.py starts the server, sets the
environment first and gives tests the fixture `hub`:

    def test_round_trip(hub):
        api = huggingface_hub.HfApi()
        repo_id = api.create_repo("demo").repo_id                     # "tester/demo"
        api.upload_file(path_or_fileobj=b"{}", path_in_repo="hess_config.json", repo_id=repo_id)
        assert hub.read(repo_id, "hess_config.json") == b"{}"         # what the server holds
        assert f"POST /api/models/{repo_id}/commit/main" in hub.calls()

The fixture empties the client's cache too: with a filled cache a download is a HEAD request only,
and server errors do not show. Faults: `hub.fail_next(r"preupload", 503)` answers
the next matching request with that status.

Simplifications: a file is LFS when its suffix is in LFS_SUFFIXES or its size reaches `lfs_threshold`
(the real Hub looks at .gitattributes and at the content); one token opens everything; card metadata
is read by a minimal front-matter reader (top-level scalars and lists of scalars only).

Imports go one way: server -> *_routes -> handler -> hub -> repositories.
"""

from .server import HubServer

__all__ = ["HubServer"]
