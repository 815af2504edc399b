"""`banger completion`, and what the scripts that it prints ask of banger at each TAB.

A script hands over its line up to the cursor (COMP_LINE) and gets one candidate a line: `kind TAB word TAB
help`, the word as a whole, even where the shell takes only what follows `=` or `:` for the current one. Of
kind `file` and `dir` there is no word: the shell itself knows best how to complete paths. Names come from
the daemon if one runs; none is started, and nothing is ever said on stderr.
"""

from __future__ import annotations

import os

import click
from click.shell_completion import (
    CompletionItem,
    ShellComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from banger.cli.escape import safe
from banger.cli.lazy import GUEST_COMMAND
from banger.cli.render import out

COMPLETE_VARIABLE = "_BANGER_COMPLETE"


class _Shell(ShellComplete):
    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)
        in_a_word = bool(words) and not (line[-1:].isspace() and not line.endswith("\\ "))
        return (words[1:-1], words[-1]) if in_a_word and len(words) > 1 else (words[1:], "")

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        if "--" in args and self._is_the_guests(args):
            return []
        option, equals, _ = incomplete.partition("=")
        items = super().get_completions(args, incomplete)
        if equals and option.startswith("--"):
            for item in items:
                item.value = f"{option}={item.value}"
        return items

    def _is_the_guests(self, args: list[str]) -> bool:
        """Whether the words after `--` are a command in a guest, of which this host knows nothing."""
        from click.shell_completion import _resolve_context

        return GUEST_COMMAND in _resolve_context(self.cli, self.ctx_args, self.prog_name, args).meta

    def format_completion(self, item: CompletionItem[str]) -> str:
        word = "" if item.type in ("file", "dir") else item.value
        return f"{item.type}\t{safe(word)}\t{safe(item.help or '')}"


class _Bash(_Shell):
    name = "bash"
    source_template = r"""
# banger's completion for bash: source it, or put it where bash-completion looks
%(complete_func)s() {
    local line="${COMP_LINE:0:COMP_POINT}" kind word help files="" cut="" mark
    local typed="${line##*[[:space:]]}"
    COMPREPLY=()
    # bash replaces only what follows the last of these marks
    for mark in : =; do
        if [[ $COMP_WORDBREAKS == *"$mark"* && $typed == *"$mark"* ]]; then
            word="${typed%%"${typed##*"$mark"}"}"
            (( ${#word} > ${#cut} )) && cut="$word"
        fi
    done
    while IFS=$'\t' read -r kind word help; do
        case $kind in
            file) files=f ;;
            dir) files=d ;;
            *) COMPREPLY+=("${word#"$cut"}")
               [[ $word == *: ]] && compopt -o nospace ;;
        esac
    done < <(COMP_LINE="$line" %(complete_var)s=bash_complete "$1" 2>/dev/null </dev/null)
    if [[ -n $files && ${#COMPREPLY[@]} -eq 0 ]]; then
        # with no candidates of ours, readline completes paths as everywhere
        if [[ $files == d ]]; then compopt -o dirnames; else compopt -o default; fi
    elif [[ -n $files ]]; then
        while read -r word; do
            [[ -d $word ]] && word+=/ && compopt -o nospace
            COMPREPLY+=("$word")
        done < <(compgen -"$files" -- "${typed#"$cut"}")
    fi
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Zsh(_Shell):
    name = "zsh"
    source_template = r"""#compdef %(prog_name)s
# banger's completion for zsh: a file `_%(prog_name)s` in a folder of $fpath, or sourced after compinit
%(complete_func)s() {
    local answer kind word help files tab=$'\t'
    local -a answers open plain described
    local line="${(j: :)words[1,CURRENT-1]} $PREFIX"
    # the command as it was typed: with a path, of a virtual environment, or found on PATH
    answers=(${(f)"$(COMP_LINE=$line %(complete_var)s=zsh_complete ${(Q)~words[1]} 2>/dev/null </dev/null)"})
    for answer in $answers; do
        kind=${answer%%%%${tab}*} answer=${answer#*${tab}}
        word=${answer%%%%${tab}*} help=${answer#*${tab}}
        case $kind in
            file|dir) files=$kind ;;
            *) if [[ $word == *: ]]; then open+=("$word")
               elif [[ -z $help ]]; then plain+=("$word")
               else described+=("${word//:/\\:}:$help"); fi ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described -U
    (( $#plain )) && compadd -U -V unsorted -a plain
    (( $#open )) && compadd -U -V unsorted -S '' -a open
    if [[ -n $files ]]; then
        [[ $PREFIX == --*=* ]] && compset -P 1 '*='
        if [[ $files == dir ]]; then _path_files -/; else _path_files; fi
    fi
    return 0
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""


class _Fish(_Shell):
    name = "fish"
    source_template = r"""
# banger's completion for fish: in ~/.config/fish/completions/%(prog_name)s.fish
function %(complete_func)s
    set -l line (commandline -cp | string collect)
    set -l token (commandline -ct)
    set -l before (string match -r -- '^--[^=]*=' $token)
    # fish itself completes paths, as for a command of which it knows nothing
    set -l path (string replace -- "$before" '' $token)
    set -l command (commandline -cop)[1]
    # commands that are typed with a path begin with ~ at times
    set command (string replace -r '^~(?=/)' $HOME -- $command)
    for answer in (env COMP_LINE=$line %(complete_var)s=fish_complete $command 2>/dev/null </dev/null)
        set -l parts (string split -m 2 \t -- $answer)
        switch $parts[1]
            case file
                printf '%%s\n' "$before"(complete -C "%(complete_func)s_none $path")
            case dir
                set -l paths (complete -C "%(complete_func)s_none $path")
                printf '%%s\n' "$before"(string match -r -- '.*/(?:\t.*)?$' $paths)
            case '*'
                printf '%%s\t%%s\n' $parts[2] $parts[3]
        end
    end
end
complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


def register() -> None:
    """Have click use the classes here in place of its own."""
    for kind in (_Bash, _Zsh, _Fish):
        add_completion_class(kind)


@click.command(
    "completion",
    help="""Print the completion script for a shell: commands, options, paths, and the names of VMs, sessions,
    images and kernels, of the daemon while it runs.

    \b
    bash: banger completion bash > ~/.local/share/bash-completion/completions/banger
    zsh:  banger completion zsh > a file `_banger` in a folder of $fpath
    fish: banger completion fish > ~/.config/fish/completions/banger.fish

    \b
    source <(banger completion bash)         for this shell only
    """,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    root = click.get_current_context().find_root().command
    register()
    kind = get_completion_class(shell)
    assert kind is not None
    out(kind(root, {}, "banger", COMPLETE_VARIABLE).source().strip("\n"))
