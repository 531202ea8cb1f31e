# bash completion for saructl(8), which makes it itself
command -v saructl >/dev/null && source <(saructl completion bash)
