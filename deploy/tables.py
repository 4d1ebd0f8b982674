"""Bind the tables of a site file at the site's FATE Flow, so that jobs can name them.

tables.py SITE_FILE PARTY_ID HOST:PORT

Runs in the server's environment, with this checkout on the path.
"""

import sys
from pathlib import Path

from fate_llm_ext.errors import ExtensionError
from fate_llm_ext.flow.server import FlowServer
from fate_llm_ext.site import load_sites


def main(site_file: Path, party_id: str, address: str) -> None:
    """Bind what stands under `tables` of every section of this party; of a file with one site, all."""
    server = FlowServer(address)
    for party, site in load_sites(site_file).items():
        if party.rpartition("_")[2] in ("", party_id):
            for table in sorted(site.tables):
                namespace, _, name = table.partition("/")
                path = site.lookup("tables", table)
                server.bind_table(namespace, name, str(path))
                sys.stdout.write(f"table {table}: {path}\n")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), *sys.argv[2:])
    except ExtensionError as error:
        sys.exit(f"tables.py: {error}")
