# bash completion for saru(8)
_saru() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} words=
	case $prev in
	--config | --key_file | --control)
		compopt -o filenames 2>/dev/null
		COMPREPLY=($(compgen -f -- "$cur"))
		return
		;;
	--syncd)
		compopt -o filenames 2>/dev/null
		COMPREPLY=($(compgen -f -W "none" -- "$cur"))
		return
		;;
	--interface | --inside) words=$(command ls /sys/class/net 2>/dev/null) ;;
	--log_facility) words="- daemon user local0 local1 local2 local3 local4 local5 local6 local7" ;;
	--virtual) words="auto" ;;
	--sense) words="src-addr src-addr,src-port src-port dst-addr dst-port" ;;
	--partition) words="quorum available" ;;
	--survivor_delay) words="never" ;;
	--mac_mode) words="external" ;;
	--node | --group | --metrics | --id | --weight | --keepalive | --warntime | --deadtime | --lease | --guard | --start_delay) ;;
	--ping_node | --expect | --masquerade | --mac) ;;
	*)
		words="--config --debug --log_facility --node --interface --group --key_file --insecure
			--control --metrics --check --cleanup --close --open --id --virtual --sense --weight
			--keepalive --warntime --deadtime --lease --guard --start_delay --ping_node --partition
			--survivor_delay --expect --inside --masquerade --mac_mode --mac --syncd --help"
		;;
	esac
	COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -F _saru saru
