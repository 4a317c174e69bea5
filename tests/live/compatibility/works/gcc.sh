# Compile and link a threaded program, and run it from each writable directory.
cat >program.c <<'C'
#include <pthread.h>
#include <stdio.h>
static void *work(void *given) { return (char *)given + 1; }
int main(void) {
    pthread_t thread;
    void *result;
    if (pthread_create(&thread, NULL, work, (void *)41) || pthread_join(thread, &result)) return 1;
    printf("%ld\n", (long)result);
    return 0;
}
C
gcc -O1 -Wall -Werror -pthread -o program program.c
for place in /workspace /tmp /var/tmp /home; do
    [ program -ef "$place/program" ] || cp program "$place/program"
    [ "$("$place/program")" = 42 ]
done
