/* Compares @name@ with the integers that qgru computed; the exit status is 0 where none differs. */
#include <stdio.h>

#include "@name@.h"
#include "@name@_vectors.h"

static long @name@_total, @name@_differing;

static void @name@_compare(const char *what, long step, long index, long expected, long found)
{
    ++@name@_total;
    if (expected == found)
        return;
    if (++@name@_differing <= 10)
        printf("@name@: step %ld, %s %ld: expected %ld, found %ld\n", step, what, index, expected, found);
}

@body@
int main(void)
{
    @name@_test();
    printf("@name@: %ld of %ld integers differ\n", @name@_differing, @name@_total);
    return @name@_differing != 0;
}
