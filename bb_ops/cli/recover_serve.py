"""``bb-ops recover switch DIR --serve``: the copy becomes the new primary where it lies."""

from pathlib import Path

import click

from bb_ops.bootstrap import Operations
from bb_ops.cli.output import emit
from bb_ops.cli.recover_authority import Authority, back_up, newest
from bb_ops.dsn import Dsn
from bb_ops.errors import BbOpsError, PartlyDone, TargetRefused
from bb_ops.recovery.switch.decision import refuse
from bb_ops.recovery.switch.journal import forget_proven
from bb_ops.recovery.switch.serve import plan_serve, serve

_EVERYWHERE = {"*", "0.0.0.0", "::"}  # noqa: S104 - what is compared, not what is bound


def serve_copy(  # noqa: PLR0913 - one option each
    ops: Operations, copy: Path, port: int, listen: str, authority: Authority, *, dry_run: bool, as_json: bool
) -> int:
    """Show what would be served, let it be confirmed, start it, and back it up."""
    plan, proven = plan_serve(copy, port, listen, ops.settings.pg_bindirs, newest(ops))
    if dry_run and as_json:
        emit(plan.model_dump(mode="json"))  # the one document, with its refusals
        return TargetRefused.exit_code if plan.refusals else 0
    if not as_json:
        click.echo(f"serves   {plan.data_directory}, proven {plan.level}: {plan.target} from {plan.backup_id}")
        click.echo(f"shows    {plan.copy_at:%Y-%m-%d %H:%M:%S} UTC")
        click.echo(f"at       {listen}, port {port}, with its own configuration and archiving")
        click.echo(f"plan     {plan.plan_hash}")
    refuse(plan.refusals)
    if dry_run:
        return 0
    authority.match(plan.plan_hash)
    authority.confirm(plan.cluster, f"open {plan.data_directory} as the new primary")
    serve(plan, ops.settings.pg_bindirs)
    host = listen if "," not in listen and listen not in _EVERYWHERE else "127.0.0.1"
    backup_id, missing = None, None
    try:
        named = {name: value for name, value in ops.database.parameters.items() if name != "hostaddr"}
        dsn = Dsn({**named, "host": host, "port": str(port)}, ops.database.password)
        backup_id = back_up(ops, dsn, proven, plan.data_directory)
        forget_proven(plan.data_directory)  # it is the cluster from now on
    except BbOpsError as error:
        missing = error
    address = f"postgresql://{host}:{port}/postgres"
    if as_json:
        document = {"schema_id": "bb-ops/serve/1", "data_directory": str(plan.data_directory), "port": port}
        emit({**document, "connection_string": address, "timeline": proven.timeline, "new_backup_id": backup_id})
    else:
        click.echo(f"connect with: {address} (roles and passwords are those of that moment); set DATABASE_URL to it")
    if missing is not None:
        click.echo(f"bb-ops: it is served, but not backed up: {missing}: repeat the same command", err=True)
        return PartlyDone.exit_code
    return 0
