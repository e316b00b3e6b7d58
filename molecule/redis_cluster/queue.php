<?php
// Laravel's own queue on the cluster: put a job into the queue that is named, and take it out again.

require '/usr/share/php/Illuminate/Queue/autoload.php';
require '/usr/share/php/Illuminate/Redis/autoload.php';

use Illuminate\Container\Container;
use Illuminate\Queue\RedisQueue;
use Illuminate\Redis\RedisManager;

[, $name] = $argv;
$password = trim(file_get_contents('php://stdin'));
// What the role's page says for config/database.php.
$redis = new RedisManager(new Container, 'phpredis', [
    'options' => ['cluster' => 'redis', 'password' => $password],
    'clusters' => ['default' => [['host' => '127.0.0.1', 'port' => 7001, 'password' => $password]]],
]);
$queue = new RedisQueue($redis, $name, 'default');
$queue->setContainer(new Container);
$queue->pushRaw(json_encode(['id' => '1', 'displayName' => 'lesson', 'job' => 'lesson', 'attempts' => 0, 'data' => []]), $name);
$job = $queue->pop($name);
echo $job->payload()['displayName'], "\n";
$job->delete();
