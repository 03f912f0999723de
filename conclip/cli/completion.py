"""Shell completion of subcommands, groups, options and keys: scripts that ask Hydra."""

BASH = """_conclip() {
    local line=${COMP_LINE:0:$COMP_POINT}
    local word=${line##* } after=${line#* } broken_off=
    local subcommand=${after%% *}
    if [[ $after == "$word" ]]; then
        COMPREPLY=($(compgen -W "@SUBCOMMANDS@" -- "$word"))
    elif [[ " @CONFIGURED@ " == *" $subcommand "* ]]; then
        line="conclip${after#"$subcommand"}"
        if [[ $COMP_WORDBREAKS == *=* ]]; then broken_off=${word%"${word##*[=:]}"}; fi
        COMPREPLY=($(COMP_LINE=$line COMP_POINT=${#line} conclip "$subcommand" -sc query=bash 2>/dev/null))
        COMPREPLY=("${COMPREPLY[@]#"$broken_off"}")
    fi
}
complete -o default -o nospace -F _conclip conclip
"""
"""Hydra takes the first word for the program and all others for overrides, so the subcommand is left out for it."""

ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n" + BASH

FISH = """function _conclip
    set -l words (commandline -opc)
    if test (count $words) -eq 1
        printf '%s\\n' @SUBCOMMANDS@
    else if contains -- $words[2] @CONFIGURED@
        set -l line (string join ' ' conclip $words[3..] (commandline -ct))
        set -lx COMP_POINT (string length -- "$line")
        set -lx COMP_LINE "$line"
        conclip $words[2] -sc query=bash 2>/dev/null | string split ' '
    end
end
complete -c conclip -a '(_conclip)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def script(shell: str, subcommands: list[str], configured: list[str]) -> str:
    """Return the completion script of a shell in `SCRIPTS`. `configured`: the subcommands that take overrides."""
    return SCRIPTS[shell].replace("@SUBCOMMANDS@", " ".join(subcommands)).replace("@CONFIGURED@", " ".join(configured))
