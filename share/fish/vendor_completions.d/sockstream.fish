# Completion of the command sockstream in fish: made by `sockstream --completion fish`.

function __sockstream_at_start
    test (count (commandline -opc)) -eq 1
end

function __sockstream_in
    set -l words (commandline -opc)
    test (count $words) -gt 1; and test "$words[2]" = "$argv[1]"; and not contains -- -- $words
end

function __sockstream_program
    set -l words (commandline -opc)
    set -l dashes (contains -i -- -- $words); or return
    set -l program $words[(math $dashes + 1)..-1] (commandline -ct)
    complete -C (string join ' ' -- (string escape -- $program))
end

complete -c sockstream -f
complete -c sockstream -n 'contains -- -- (commandline -opc)' -x -a '(__sockstream_program)'
complete -c sockstream -n '__sockstream_in --completion' -x -a 'bash zsh fish'
complete -c sockstream -n __sockstream_at_start -a run -d 'Run a program with its stdin, stdout and stderr on a socket.'
complete -c sockstream -n __sockstream_at_start -a serve -d 'Wait for viewers and run a program for each.'
complete -c sockstream -n __sockstream_at_start -a listen -d 'Wait for programs and show them in this terminal.'
complete -c sockstream -n __sockstream_at_start -a connect -d 'Dial a served program, or any raw service, from this terminal.'
complete -c sockstream -n __sockstream_at_start -a token -d 'Show where the token is, or carry it to a second machine.'
complete -c sockstream -n __sockstream_at_start -a demo -d 'See it work: a script'"'"'s output arrives live in another process.'
complete -c sockstream -n __sockstream_at_start -l help -d 'list the commands'
complete -c sockstream -n __sockstream_at_start -l version -d 'print the version'
complete -c sockstream -n __sockstream_at_start -l man -d 'print this manual page'
complete -c sockstream -n __sockstream_at_start -l completion -d 'print the completion of the command line for a shell: bash, zsh or fish'
complete -c sockstream -n '__sockstream_in run' -s h -l help -d 'show this help message and exit'
complete -c sockstream -n '__sockstream_in run' -l to -r -F -d 'where the viewer end waits (default: the user'"'"'s own socket)'
complete -c sockstream -n '__sockstream_in run' -l only -x -a 'out in' -d 'carry only the outputs, or only the input'
complete -c sockstream -n '__sockstream_in run' -l merge-stderr -d 'send stderr where stdout goes'
complete -c sockstream -n '__sockstream_in run' -l name -x -d 'the program'"'"'s name for viewers (default: its file name)'
complete -c sockstream -n '__sockstream_in run' -l env -x -d 'set a variable for the program'
complete -c sockstream -n '__sockstream_in run' -l chdir -x -a '(__fish_complete_directories)' -d 'run the program in this directory'
complete -c sockstream -n '__sockstream_in run' -l eof-grace -x -d 'raw: how long the program may go on after the peer'"'"'s end of file (no limit)'
complete -c sockstream -n '__sockstream_in run' -l wait -x -d 'how long to try at the start (5; 0: once)'
complete -c sockstream -n '__sockstream_in run' -l tls-ca -r -F -d 'tls://: the authority to trust, in place of the system'"'"'s'
complete -c sockstream -n '__sockstream_in run' -l token-file -r -F -d 'the secret that both ends share (default: the user'"'"'s own)'
complete -c sockstream -n '__sockstream_in run' -s v -l verbose -d 'say more; twice: every frame'
complete -c sockstream -n '__sockstream_in run' -s q -l quiet -d 'say errors only'
complete -c sockstream -n '__sockstream_in run' -l grace -x -d 'how long to go on without a link (60; inf)'
complete -c sockstream -n '__sockstream_in serve' -s h -l help -d 'show this help message and exit'
complete -c sockstream -n '__sockstream_in serve' -F -d 'where to wait'
complete -c sockstream -n '__sockstream_in serve' -l once -d 'run one program and end with its status'
complete -c sockstream -n '__sockstream_in serve' -l max -x -d 'programs at a time (64)'
complete -c sockstream -n '__sockstream_in serve' -l only -x -a 'out in' -d 'carry only the outputs, or only the input'
complete -c sockstream -n '__sockstream_in serve' -l merge-stderr -d 'send stderr where stdout goes'
complete -c sockstream -n '__sockstream_in serve' -l name -x -d 'the program'"'"'s name for viewers (default: its file name)'
complete -c sockstream -n '__sockstream_in serve' -l env -x -d 'set a variable for the program'
complete -c sockstream -n '__sockstream_in serve' -l chdir -x -a '(__fish_complete_directories)' -d 'run the program in this directory'
complete -c sockstream -n '__sockstream_in serve' -l eof-grace -x -d 'raw: how long the program may go on after the peer'"'"'s end of file (no limit)'
complete -c sockstream -n '__sockstream_in serve' -l tls-cert -r -F -d 'the certificate of this end (tls:// needs one)'
complete -c sockstream -n '__sockstream_in serve' -l tls-key -r -F -d 'its key, if that is in a file of its own'
complete -c sockstream -n '__sockstream_in serve' -l insecure -d 'let raw tcp:// wait on an address of the network'
complete -c sockstream -n '__sockstream_in serve' -l token-file -r -F -d 'the secret that both ends share (default: the user'"'"'s own)'
complete -c sockstream -n '__sockstream_in serve' -s v -l verbose -d 'say more; twice: every frame'
complete -c sockstream -n '__sockstream_in serve' -s q -l quiet -d 'say errors only'
complete -c sockstream -n '__sockstream_in serve' -l grace -x -d 'how long to go on without a link (60; inf)'
complete -c sockstream -n '__sockstream_in listen' -s h -l help -d 'show this help message and exit'
complete -c sockstream -n '__sockstream_in listen' -F -d 'where to wait (default: the user'"'"'s own socket)'
complete -c sockstream -n '__sockstream_in listen' -l once -d 'one program: its exact bytes, its status'
complete -c sockstream -n '__sockstream_in listen' -l timestamps -d 'put the time before each line'
complete -c sockstream -n '__sockstream_in listen' -l tls-cert -r -F -d 'the certificate of this end (tls:// needs one)'
complete -c sockstream -n '__sockstream_in listen' -l tls-key -r -F -d 'its key, if that is in a file of its own'
complete -c sockstream -n '__sockstream_in listen' -l insecure -d 'let raw tcp:// wait on an address of the network'
complete -c sockstream -n '__sockstream_in listen' -l token-file -r -F -d 'the secret that both ends share (default: the user'"'"'s own)'
complete -c sockstream -n '__sockstream_in listen' -s v -l verbose -d 'say more; twice: every frame'
complete -c sockstream -n '__sockstream_in listen' -s q -l quiet -d 'say errors only'
complete -c sockstream -n '__sockstream_in listen' -l grace -x -d 'how long to go on without a link (60; inf)'
complete -c sockstream -n '__sockstream_in connect' -s h -l help -d 'show this help message and exit'
complete -c sockstream -n '__sockstream_in connect' -F -d 'where the program end, or any raw service, waits'
complete -c sockstream -n '__sockstream_in connect' -l crlf -d 'send line ends as CR LF, for line protocols'
complete -c sockstream -n '__sockstream_in connect' -l wait -x -d 'how long to try at the start (5; 0: once)'
complete -c sockstream -n '__sockstream_in connect' -l tls-ca -r -F -d 'tls://: the authority to trust, in place of the system'"'"'s'
complete -c sockstream -n '__sockstream_in connect' -l token-file -r -F -d 'the secret that both ends share (default: the user'"'"'s own)'
complete -c sockstream -n '__sockstream_in connect' -s v -l verbose -d 'say more; twice: every frame'
complete -c sockstream -n '__sockstream_in connect' -s q -l quiet -d 'say errors only'
complete -c sockstream -n '__sockstream_in connect' -l grace -x -d 'how long to go on without a link (60; inf)'
complete -c sockstream -n '__sockstream_in token' -s h -l help -d 'show this help message and exit'
complete -c sockstream -n '__sockstream_in token' -l show -d 'print the token itself; it is made if there is none'
complete -c sockstream -n '__sockstream_in token' -l set -d 'read a token from stdin and keep it'
complete -c sockstream -n '__sockstream_in token' -l replace -d 'with --set: also in place of another one'
complete -c sockstream -n '__sockstream_in token' -l token-file -r -F -d 'this file in place of the user'"'"'s own'
complete -c sockstream -n '__sockstream_in demo' -s h -l help -d 'show this help message and exit'
complete -c sockstream -n '__sockstream_in demo' -l seconds -x -d 'about how long (4; at most 6)'
