"""The table of `banger vm …`."""

from __future__ import annotations

from banger.cli.lazy import LazyGroup

vm = LazyGroup(
    "vm",
    help="Make, start, enter, list and remove VMs.",
    lazy={
        "run": ("banger.cli.vm_run:run", "Make a VM and run a shell or a command in it."),
        "create": ("banger.cli.vm_run:create", "Make a VM; print its id."),
        "list": ("banger.cli.vm_list:list_command", "List the VMs."),
        "ps": ("banger.cli.vm_list:ps", "List the running VMs (-a: all)."),
        "show": ("banger.cli.vm_list:show", "All about one VM."),
        "exec": ("banger.cli.vm_exec:exec_command", "Run a command in a running VM."),
        "shell": ("banger.cli.vm_shell:shell", "A shell in a running VM."),
        "ssh": ("banger.cli.vm_ssh:ssh", "Log in with the system's ssh, key and host key known."),
        "cp": ("banger.cli.vm_cp:cp", "Copy files between the host and a running VM."),
        "start": ("banger.cli.vm_life:start", "Boot VMs."),
        "stop": ("banger.cli.vm_life:stop", "Shut VMs down in order."),
        "restart": ("banger.cli.vm_life:restart", "Stop and start VMs."),
        "kill": ("banger.cli.vm_life:kill", "End VMs at once."),
        "delete": ("banger.cli.vm_life:delete", "End VMs and remove all of them."),
        "set": ("banger.cli.vm_life:set_command", "Change size or NAT of VMs."),
        "prune": ("banger.cli.vm_prune:prune", "Delete every VM that is not running."),
        "stats": ("banger.cli.vm_vitals:stats", "What VMs use of the host."),
        "health": ("banger.cli.vm_vitals:health", "How a VM's guest is."),
        "ping": ("banger.cli.vm_vitals:ping", "The same in one word."),
        "session": ("banger.cli.vm_session:session", "Long-lived commands that outlive the terminal."),
        "workspace": ("banger.cli.vm_workspace:workspace", "A git repository in a VM, and its way out."),
        "publish": ("banger.cli.vm_publish:publish", "Publish a guest's ports on this host."),
        "unpublish": ("banger.cli.vm_publish:unpublish", "Take published ports back."),
        "ports": ("banger.cli.vm_ports:ports", "Who listens in a VM's guest."),
        "logs": ("banger.cli.vm_logs:logs", "The console's or the monitor's log."),
    },
    hidden=frozenset({"ps"}),
)
