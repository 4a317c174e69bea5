# Build a library and a program in parallel, and nothing the second time.
cat >Makefile <<'MAKE'
program: main.o libtwice.so
	gcc -o $@ $^ -Wl,-rpath,'$$ORIGIN'
libtwice.so: twice.c
	gcc -shared -fPIC -o $@ $<
MAKE
echo 'int twice(int n) { return 2 * n; }' >twice.c
echo 'int twice(int); int main(void) { return twice(21); }' >main.c
make --silent --jobs=2
status=0
./program || status=$?
[ "$status" = 42 ]
make --question
