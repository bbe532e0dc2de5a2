# bash completion for moec; made by `moec docs completion`: do not edit.
_moec() {
    local word=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]} words=
    if [ "$COMP_CWORD" = 1 ]; then
        words="check compile run route train mem plan import show std fmt opt bench explain cache docs --help --version"
    elif [[ $word == -* ]]; then
        case $command in
        check) words="--define --set --model --config --mesh --diagnostics --color --help --version" ;;
        compile) words="--output --define --set --model --config --map --emit --train --recompute --frozen --mesh --target --gpu --weights --passes --skip --fuel --print-changed --dump-dir --time-passes --remarks --cache --diagnostics --color --help --version" ;;
        run) words="--define --set --model --config --map --mesh --target --gpu --passes --remarks --cache --diagnostics --color --help --version" ;;
        route) words="--output --define --set --model --config --map --target --cache --diagnostics --color --help --version" ;;
        train) words="--define --set --model --recompute --frozen --data --out --steps --batch --length --accumulate --seed --resume --checkpoint-every --log-every --check --json --threads --deadline --mesh --weights --color --help --version" ;;
        mem) words="--define --set --model --frozen --batch --length --tokens --json --threads --color --help --version" ;;
        plan) words="--output --define --set --model --config --train --tokens --seed --json --mesh --nodes --redundant --links --explain --simulate --skew --placement --trace --place --diagnostics --color --help --version" ;;
        import) words="--output --define --diagnostics --color --help --version" ;;
        show) words="--define --set --model --config --mesh --diagnostics --color --help --version" ;;
        std) words="--color --help --version" ;;
        fmt) words="--write --verify --diagnostics --color --help --version" ;;
        opt) words="--output --define --set --model --config --map --mesh --passes --skip --nr --fuel --print-changed --dump-dir --verify-each --time-passes --remarks --diagnostics --color --help --version" ;;
        bench) words="--define --set --model --config --mesh --target --gpu --passes --remarks --cache --diagnostics --color --help --version" ;;
        explain) words="--color --help --version" ;;
        cache) words="--cache --color --help --version" ;;
        docs) words="--color --help --version" ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [ ${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- "$word"))
}
complete -o filenames -F _moec moec
