# nobody, with a home, a name, a host name and a temporary directory that work.
[ "$(id -un)" = nobody ]
[ "$(id -u) $(id -g)" = '65534 65534' ]
[ "$(hostname)" = corral ]
[ "$PWD" = /workspace ]
[ "$HOME" = /home ]
touch ~/file "$(mktemp)"
python3 -c 'import getpass; assert getpass.getuser() == "nobody"'
python3 -c 'import random, secrets, uuid; secrets.token_bytes(8), uuid.uuid4(), uuid.uuid1()'
[ "$(printf 'é' | LC_ALL=C.UTF-8 wc -m)" = 1 ]
