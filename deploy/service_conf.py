"""Write what is ours into FATE Flow's configuration; the rest stays as `fate_flow init` left it.

    service_conf.py CONF_FOLDER PARTNERS_FILE

Settings come from the environment (site.env). Runs in the server's environment, whose YAML it uses.
"""

import os
import sys
from pathlib import Path

from ruamel import yaml


def main(conf: Path, partners: Path) -> None:
    """Set party, ports, engines, broker, gateway, provider and database; route each partner to its broker."""
    path = conf / "service_conf.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    env = os.environ
    settings["party_id"] = env["PARTY_ID"]
    settings["fateflow"] = {
        "host": env["LISTEN"],
        "http_port": int(env["FLOW_HTTP_PORT"]),
        "grpc_port": int(env["FLOW_GRPC_PORT"]),
        "proxy_name": "nginx",
    }
    mark = conf / ".site"  # what is set below stands; later only addresses and the password follow site.env
    if not mark.exists():
        # Tables of FATE's own components in files, messages over RabbitMQ.
        settings["default_engines"] = {"computing": "standalone", "federation": "rabbitmq", "storage": "standalone"}
        settings["default_provider"] = {"name": "fate", "version": env["PROVIDER_VERSION"], "device": "local"}
        # Each site has a broker, and queues are replicated between them.
        settings["federation"] = {"nginx": {"protocol": "http"}, "rabbitmq": {"user": "fate", "mode": "replication"}}
    settings["federation"].setdefault("nginx", {}).update(host=env["LISTEN"], http_port=int(env["PROXY_PORT"]))
    settings["federation"].setdefault("rabbitmq", {}).update(
        host=env["LISTEN"],
        port=int(env["BROKER_PORT"]),
        mng_port=int(env["BROKER_MANAGEMENT_PORT"]),
        password=env["SECRET_BROKER"],
    )
    if env.get("DATABASE", "sqlite") != "sqlite":
        settings["database"]["engine"] = "mysql"
        settings["database"]["mysql"].update(
            host=env["MYSQL_HOST"],
            port=int(env["MYSQL_PORT"]),
            name=env["MYSQL_NAME"],
            user=env["MYSQL_USER"],
            passwd=env["SECRET_MYSQL"],
        )
    _write(path, settings)
    mark.touch()
    path = conf / "job_default_config.yaml"
    defaults = yaml.safe_load(path.read_text(encoding="utf-8"))
    # By default each party reports the end of its task to the scheduler's server, once: if that one is just being
    # restarted, the job is running for ever.
    defaults["sync_type"] = "poll"
    _write(path, defaults)
    lines = [line.split() for line in partners.read_text(encoding="utf-8").splitlines()]
    routes = {
        line[0]: {"host": line[1], "port": int(line[3])} for line in lines if line and not line[0].startswith("#")
    }
    _write(conf / "rabbitmq_route_table.yaml", routes)


def _write(path: Path, content: dict) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)  # the broker's password is in it
    path.write_text(yaml.safe_dump(content, default_flow_style=False), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
