# bash completion for syncd(8)
_syncd() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} words=
	case $prev in
	--config | --key_file | --control)
		compopt -o filenames 2>/dev/null
		COMPREPLY=($(compgen -f -- "$cur"))
		return
		;;
	--interface) words=$(command ls /sys/class/net 2>/dev/null) ;;
	--log_facility) words="- daemon user local0 local1 local2 local3 local4 local5 local6 local7" ;;
	--sysctl) words="apply check off" ;;
	--auth) words="enforce permissive receive-only" ;;
	--mirror) words="all templates" ;;
	--kernel_entries) words="all next" ;;
	--join) words="none" ;;
	--backlog | --audit_interval | --node | --group | --metrics | --tap | --tap_address | --syncid | --mirror_service) ;;
	*)
		words="--config --debug --log_facility --node --interface --group --key_file --insecure
			--control --metrics --check --cleanup --tap --tap_address --sysctl --auth --syncid
			--mirror --mirror_service --kernel_entries --join --backlog --audit_interval --help"
		;;
	esac
	COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -F _syncd syncd
